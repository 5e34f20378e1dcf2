"""The in-context corpus: episodes in which nothing but the shots says what a picture is called."""
