"""Errors: how a broken rule is told. Knows no transport and never prints."""


class Refused(ValueError):
    """Something that breaks a rule.

    `code`: snake_case, for programs. `message`: a sentence that names the broken rule, where it was found and the way out.
    `path`: the place inside the refused value, such as `stages[2].condition`; None when the whole of it is meant.
    """

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code!r}, {self.message!r}, path={self.path!r})"

    def __reduce__(self) -> tuple[type["Refused"], tuple[str, str, str | None]]:
        return (type(self), (self.code, self.message, self.path))


def shown(value: object) -> str:
    """*value* as an error may show it: short, on one line, whatever it is (deeply nested, huge, not Unicode)."""
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return '"' + text.encode("unicode_escape").decode("ascii") + '"' if _awkward(text) else f'"{text}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


def _awkward(text: str) -> bool:
    return not text.isprintable()
