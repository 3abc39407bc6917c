"""Names, identities and small values of the run record that its writer and readers share."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StrictFloat,
    StrictInt,
    model_validator,
)
from pydantic.dataclasses import dataclass as validated

from altgrad.config import ExperimentConfig, UsageError, one_line
from altgrad.config import digest as digest
from altgrad.runs.secrets import mask

SCHEMA_VERSION = 1
STATUSES = ("running", "finished", "failed", "crashed", "interrupted")
UNENDED = "status: "
"""How the line of an import's report begins that says that the log does not tell how its run ended."""
FAILURE_KINDS = (
    "nan_loss", "divergence", "overflow", "underflow", "stall", "gradient_vanishing", "early_stop", "unknown",
)  # fmt: skip
PHASES = ("forward", "backward", "optimizer")
LAYER_COLUMNS = ("step", "layer", "layer_type", "operand", "statistic", "value")
_ROOT = r"(?:(?<![\w.~/-])/+|(?<![A-Za-z0-9])[A-Za-z]:[\\/]+|(?<![\w\\])\\\\+(?=[^\\]))"
_URL_OR_PATH = re.compile(
    r"(?P<url>\b(?!file:)(?:[A-Za-z][A-Za-z0-9.-]*\+)?[A-Za-z][A-Za-z0-9.-]+://(?![/\\])[^\s'\"<>]+)"
    rf"|(?P<quote>['\"`]){_ROOT}(?:(?!(?P=quote))[^\n])*?[\\/](?P<quoted>(?:(?!(?P=quote))[^\\/\n])+)(?=[\\/]*(?P=quote))"
    rf"|{_ROOT}(?:[^\\/\s'\"`<>|:]+[\\/]+)+(?P<bare>[^\\/\s'\"`<>|:]+)"
)
_HOME = re.compile(r"['\"`]?(?:[A-Za-z]:)?[\\/]+(?:home|Users)[\\/]+[^\\/]+")


class RecordError(UsageError):
    """A run record that cannot be used; the message names the file and the remedy."""


class NewerRecord(RecordError):
    """A record that a later version of AltGrad wrote: sound, but not to be read by this one."""


@dataclass(frozen=True)
class Problem:
    """A record that was left out: where it lies (relative to its source) and why."""

    where: str
    reason: str


class Alarm(NamedTuple):
    """Something found wrong while a run goes on: in the record an event of kind "warning" with these fields.

    Attributes:
        what: a short name: "nonfinite", "jump", "zeroed", "rank_collapse", "overflow", "underflow", "stall",
            "gradient_vanishing".
        tensor: the parameter (``blocks.0.mlp.up.weight``), its gradient (``....weight.grad``) or the operand
            (``blocks.0.mlp.up.activation``) it was seen in.
        phase: forward, backward or optimizer.
        value: the figure that raised it, in the unit of the measure; may be NaN or infinite (null in run.json).
        message: one line for people, with the figure and what it is held against.
    """

    what: str
    tensor: str
    phase: str
    value: float
    message: str


Text = InstanceOf[str]
"""Any text, also one that UTF-8 cannot hold."""


def _one_of(words: tuple[str, ...]) -> AfterValidator:
    def check(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return AfterValidator(check)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Failure:
    """Why a run ended badly, and where it began.

    Attributes:
        kinds: one or more of `FAILURE_KINDS`.
        step: first bad step.
        tensor: the layer and operand in which it was seen first, or None where no tensor can be named.
        phase: forward, backward or optimizer; None where it is not known.
        message: one line for people: how the run ended.
        cause: one line for people: what `tensor` and `phase` were named for; empty where they are not known.
        diagnostics: the last figures of the layers, a dict an operand: step, layer, operand, and statistics by name.
        losses: [step, training loss] up to the end, thinned.
        advice: what to try, a line each.

    NaN and infinity are None in `diagnostics` and `losses`. Records of earlier versions have none of the last four.

    Raises:
        ValueError: a field of another kind, or a kind or phase that there is not.
    """

    kinds: Annotated[tuple[Annotated[Text, _one_of(FAILURE_KINDS)], ...], Field(min_length=1)]
    step: StrictInt
    tensor: Text | None = None
    phase: Annotated[Text, _one_of(PHASES)] | None = None
    message: Text = ""
    cause: Text = ""
    diagnostics: tuple[dict[Any, Any], ...] = ()
    losses: tuple[tuple[StrictInt, float | None], ...] = ()
    advice: tuple[Text, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        found: dict[str, Any] = json_ready(asdict(self))
        return found


def _in_utc(text: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise ValueError("it is not an ISO 8601 time") from None


Count = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


class LeftOut(BaseModel):
    """Parameters of like names that are not quantized, and why; multiply-adds of the products that read them."""

    name: Text
    why: Text
    count: Count
    parameters: Count
    multiply_adds: Count | None


class CoverageEvent(BaseModel):
    """What of a model is quantized, as a loop has recorded it (`altgrad.nn.coverage.Report.summary`).

    Attributes:
        parameters, quantized: how many there are, and the share of them that is quantized.
        multiply_adds, rounded: of the first forward pass, and the share of rounded operands; None where not counted.
        left_out, more: the largest groups, and how many there are beside.
        wide: layers that are looked at, and round nothing.
    """

    parameters: Count
    quantized: Share
    multiply_adds: Count | None = None
    rounded: Share | None = None
    left_out: list[LeftOut] = []
    more: Count = 0
    wide: list[Text] = []

    @model_validator(mode="after")
    def _of_what_was_counted(self) -> CoverageEvent:
        if self.multiply_adds and self.rounded is None:
            raise ValueError("multiply_adds has a share that is rounded")
        return self


Time = Annotated[Text, AfterValidator(_in_utc)]


def _of_64_bits(number: int | float | None) -> int | float | None:
    if isinstance(number, int) and abs(number) >= 2**63:
        raise ValueError("it is too large a number")
    return number


class _Head(BaseModel):
    model_config = ConfigDict(extra="allow")


class Data(_Head):
    """What a run was trained on."""

    sha256: Text
    name: Text = "unnamed"


class Origin(_Head):
    """Where in W&B a record came from, and when, as `altgrad.runs.wandb_records` writes it."""

    entity: Text
    project: Text
    id: Text
    pulled: Time
    report: list[Text] = []


class Proof(BaseModel):
    """What proves a table: its rows, the sha256 of the file's bytes, and that of its footer, its last bytes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rows: StrictInt = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    footer: str = Field(pattern="^[0-9a-f]{64}$")


class Head(_Head):
    """What readers need of a run.json, with the value of a key that is not there; other keys stay as they are."""

    format: StrictInt = Field(alias="schema")
    id: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    status: Annotated[Text, _one_of(STATUSES)]
    created: Time
    config: dict[Any, Any]
    data: Data
    ended: Time | None = None
    wandb_url: Text | None = None
    message: Text | None = None
    failure: Failure | None = None
    events: list[Any] = []
    environment: dict[Any, Any] = {}
    code: dict[Any, Any] = {}
    summary: dict[Any, Any] = {}
    seconds: Annotated[StrictInt | StrictFloat | None, AfterValidator(_of_64_bits)] = None
    origin: Origin | None = None
    tables: dict[Literal["history", "layers"], Proof] = {}


def json_ready(value: Any) -> Any:
    """`value` with lists for tuples, null for NaN and infinities, NumPy's and tensors' numbers as numbers.

    What is no value of JSON is its text, so that run.json can always be written.
    """
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    try:
        value = plain(value)
    except TypeError:
        return public_line(value)[:200]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> bool | int | float | str | None:
    """`value` as a value of JSON: NumPy scalars, one-element arrays and tensors of any framework become numbers.

    Raises:
        TypeError: it is neither a number, text nor None.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[no-any-return]
    if callable(item := getattr(value, "item", None)):
        try:
            found = item()
        except Exception:  # each framework has its own error for "more than one element"
            raise TypeError("more than one value") from None
        if type(found) in (bool, int, float, str):
            return found  # type: ignore[no-any-return]
    if isinstance(value, numbers.Real | str):
        kind = next((kind for kind in (int, float, str) if isinstance(value, kind)), float)
        return kind(value)  # type: ignore[arg-type]
    raise TypeError("neither a number nor text")


def without_paths(text: str) -> str:
    """`text` with the last component of each absolute path in place of the path, quoted or not; a home is ``~``.

    Paths are POSIX or Windows ones of two components or more; without quotes a path ends at a space or colon. Addresses
    (``https://``, ``gs://``, any but ``file:``) and relative paths stay. A record is published: it must not tell where
    things lie on a machine.
    """

    def last(found: re.Match[str]) -> str:
        name = "~" if _HOME.fullmatch(found[0]) else found["quoted"] or found["bare"]
        return found["url"] or (found["quote"] or "") + name

    return _URL_OR_PATH.sub(last, text)


def public_line(value: object) -> str:
    """The text of an error or a value on one line that may be published: no absolute path, nothing like a secret."""
    found: str = mask(without_paths(one_line(value)))
    return found


def run_id(config: ExperimentConfig, data: Mapping[str, Any]) -> str:
    """``<name>-s<seed>-<8 hex>``, the hash over what decides the result: config and data fingerprint."""
    return f"{with_seed(config.resolved_name, config)}-{digest(config.identity(), data['sha256'])[:8]}"


def with_seed(name: str, config: ExperimentConfig) -> str:
    """``<name>-s<seed>``; the name alone where no seed is stated."""
    return name if config.stated_seed is None else f"{name}-s{config.stated_seed}"


def arm_id(config: ExperimentConfig, data: Mapping[str, Any], run: str | None = None) -> str:
    """``<derived name>-<8 hex>`` of the config without its seed: what the seeds of one arm share.

    The user's `name` takes no part: two runs of one config are one arm whatever they are called. A run of another loop
    that states no config or no seed is an arm by itself, that of the id `run`.
    """
    derived = config.model_copy(update={"name": None}).resolved_name
    alone = config.foreign is not None and not (config.states("seed") and config.arm_identity() != {"foreign": {}})
    return f"{derived}-{digest(config.arm_identity(), data['sha256'], *([run] if run and alone else []))[:8]}"
