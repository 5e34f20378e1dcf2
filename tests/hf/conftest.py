from types import SimpleNamespace

import pytest

from tests.hf.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_tiny(tmp_path_factory.mktemp("tiny"))
