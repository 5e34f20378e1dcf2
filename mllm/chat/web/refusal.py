"""Errors of /v1 in the form that OpenAI's clients read."""

from typing import Any


class Refusal(Exception):
    """An answer that is not given.

    Args:
        param: the body's key at fault.
        code: what a program can tell apart.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    @property
    def body(self) -> dict[str, Any]:
        return error_body(str(self), self.param, self.code, self.status)


def error_body(
    message: str, param: str | None = None, code: str | None = None, status: int = 400
) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
