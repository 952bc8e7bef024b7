"""Typed inputs. All faults are found at once. They name fields as users write them, and repeat no value."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.settings import Settings
from twilio_connector.validation import phone_numbers

INVALID = object()
"""Stands for a value that is given but wrong, when fields are checked together."""

_MAX_UNKNOWN = 20  # names in one error
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z_.-]{0,39}")


class Parsed(str):
    """A text that is checked, and brought into Twilio's form, by `parse`."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Return the value; raises ValueError, whose message says what is wrong without repeating it."""
        raise NotImplementedError


class Recipient(Parsed):
    """An address that Twilio sends to."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a national number in the stack's DefaultCountry."""
        return cls(phone_numbers.recipient(_text(value), Settings.from_env().default_country))


class Sender(Parsed):
    """An address that Twilio sends from."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a national number in the stack's DefaultCountry."""
        return cls(phone_numbers.sender(_text(value), Settings.from_env().default_country))


class Moment(Parsed):
    """An ISO 8601 date-time with offset, kept as Twilio takes it: in UTC, with Z and whole seconds."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Convert to UTC."""
        try:
            moment = msgspec.convert(_text(value), datetime)
            if moment.tzinfo is None:
                raise ValueError  # noqa: TRY301 the same fault to the user
            return cls(moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))
        except (msgspec.ValidationError, ValueError, OverflowError):
            raise ValueError("must be an ISO 8601 date-time with offset, such as 2030-01-31T09:00:00Z") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 msgspec turns ValueError into a fault
    return value


def _sid(*prefixes: str) -> Meta:
    names = " or ".join(prefixes)
    return Meta(
        pattern=rf"\A({'|'.join(prefixes)})[0-9a-fA-F]{{32}}\Z",
        description=f"must be a SID: {names} and 32 hexadecimal digits",
    )


AccountSid = Annotated[str, _sid("AC")]
ApiKeySid = Annotated[str, _sid("SK")]
ApplicationSid = Annotated[str, _sid("AP")]
ContentSid = Annotated[str, _sid("HX")]
MessageSid = Annotated[str, _sid("SM", "MM")]
MessagingServiceSid = Annotated[str, _sid("MG")]
IdempotencyKey = Annotated[
    str, Meta(pattern=r"\A[!-~]{1,128}\Z", description="must be 1 to 128 visible ASCII characters, without spaces")
]
Flag = Annotated[bool, Meta(description="must be true or false")]
ConnectionName = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z",
        description="must be 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first",
    ),
]


class Input(Struct, frozen=True, kw_only=True):
    """The input of an action. `also_called` maps a field's names in other APIs to ours, for the hint in an error."""

    also_called: ClassVar[Mapping[str, str]] = MappingProxyType({})

    connection: ConnectionName | None = None

    keyed_by_delivery: ClassVar[bool] = False
    """Whether a delivery's id is the `idempotency_key` of an input that has none."""

    @property
    def read_only(self) -> bool:
        """Whether the action changes nothing at Twilio."""
        return True

    @property
    def outcome(self) -> str:
        """What the log says of a call that succeeded."""
        return "done"

    @classmethod
    def cross_field_faults(cls, given: Mapping[str, Any]) -> Iterator[Fault]:  # noqa: ARG003 for subclasses
        """Yield the faults of fields together; in `given` a wrong value is `INVALID`."""
        yield from ()

    @classmethod
    def parse(cls, payload: Any, text: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Self:
        """Return the input; raises InvalidInputError with all its faults.

        `payload` is JSON. `text` are values from a query string or a path, where numbers and booleans are
        text, and a name may repeat.
        """
        if not isinstance(payload, dict):
            raise InvalidInputError(Fault("(input)", "must be a JSON object"))
        try:
            msgspec.json.encode(payload)
        except (UnicodeEncodeError, TypeError, RecursionError):
            raise InvalidInputError(Fault("(input)", "must be JSON with valid Unicode text only")) from None
        given, faults = convert(cls, payload, text)
        known = fields(cls)
        others = [name for name in [*payload, *text] if name not in known]
        faults += [Fault(*_unknown(name, known, cls.also_called)) for name in others[:_MAX_UNKNOWN]]
        faults += [
            Fault(name, "is given twice, in the query string or path and in the body")
            for name in text
            if payload.get(name) is not None and name in known
        ]
        faults += [Fault(name, "is required") for name, field in known.items() if field.required and name not in given]
        faults += cls.cross_field_faults(given)
        if faults:
            raise InvalidInputError(*faults)
        return cls(**{known[name].name: value for name, value in given.items()})


@cache
def fields(cls: type[Struct]) -> dict[str, FieldInfo]:
    """Return a struct's fields by the names that users write."""
    return {field.encode_name: field for field in msgspec.structs.fields(cls)}


def convert(
    cls: type[Struct], payload: Mapping[str, Any], text: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[dict[str, Any], list[Fault]]:
    """Return the fields' values by the users' names, and the faults of those that are `INVALID`.

    Unknown names are ignored. null is the same as absent.
    """
    given: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, field in fields(cls).items():
        if name in text:
            value, strict = from_query(text[name], field.type), False
        elif payload.get(name) is not None:
            value, strict = payload[name], True
        else:
            continue
        try:
            given[name] = msgspec.convert(value, field.type, strict=strict, dec_hook=_parse)
        except (msgspec.ValidationError, RecursionError) as error:
            given[name] = INVALID
            faults.append(Fault(name, _message(error, field.type)))
    return given, faults


def _parse(kind: type, value: Any) -> Any:
    return kind.parse(value)  # type: ignore[attr-defined]


def from_query(values: Sequence[str], kind: Any) -> Any:
    """Return a query string's value: a list if the field is one, otherwise the single value."""
    many = any(get_origin(option) is list for option in _options(kind))
    return list(values) if many or len(values) != 1 else values[0]


def _options(kind: Any) -> Iterator[Any]:
    """Yield the types in a union, without their annotations."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _options(get_args(kind)[0])
    elif origin is Literal or origin is list or origin is dict or not get_args(kind):
        yield kind
    else:
        for option in get_args(kind):
            yield from _options(option)


class _Told(NamedTuple):
    kind: type
    message: str


_TOLD = (
    _Told(bool, "must be true or false"),
    _Told(int, "must be a whole number"),
    _Told(float, "must be a number"),
    _Told(str, "must be text"),
    _Told(dict, "must be an object"),
    _Told(list, "must be a list"),
)


def _message(error: Exception, kind: Any) -> str:
    """Return the rule for a value: msgspec's own messages may repeat the value."""
    if isinstance(error.__cause__, ValueError):
        return str(error.__cause__)
    if description := _description(kind):
        return description
    option = next(option for option in _options(kind) if option is not type(None))
    if get_origin(option) is Literal:
        return f"must be {' or '.join(map(str, get_args(option)))}"
    plain = get_origin(option) or option
    return next((told.message for told in _TOLD if told.kind is plain), "has the wrong type")


def _description(kind: Any) -> str | None:
    """Return the description in a type's annotation, or None."""
    if get_origin(kind) is Annotated:
        return next((meta.description for meta in kind.__metadata__ if meta.description), None)
    if get_origin(kind) in {list, dict}:
        return None
    return next(filter(None, map(_description, get_args(kind))), None)


def _unknown(name: str, known: Mapping[str, FieldInfo], elsewhere: Mapping[str, str]) -> tuple[str, str]:
    """Return the fault of an unknown field, with the nearest known name. A name that may be a value is not repeated."""
    from difflib import get_close_matches  # noqa: PLC0415 only for a fault

    if not _PLAIN_NAME.fullmatch(name):
        return "(unnamed)", "is not a field's name"
    near = elsewhere.get(name.lower()) or next(iter(get_close_matches(name.lower(), known, n=1)), None)
    return name, f"is not known{f'; did you mean {near}?' if near else ''}"
