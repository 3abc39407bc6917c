"""What looks like a secret never reaches a record, W&B or a page: it is known by its name, or by its own shape.

By name. A name is split into words at capitals, digits and whatever is no letter, and judged by its words: `hf_token`,
`openAIKey` and `api.key` are secrets, `tokenizer`, `monkey` and `bypass` are not. Some words always are (`_ALWAYS`);
a key, token or pass is one where the word before it has accounts (`_OWNERS`); any other ``..._token`` is one unless it
is a piece of text to a model (`_OF_TEXTS`: `eos_token`) or its value looks like such a piece (``<s>``). Under any other
name with such a word, or one that ends in a word about it (`_ABOUT`: `password_policy`), what looks random is. Texts
are secrets, and numbers of six digits and more under a name that always is one; other numbers, booleans and None stay.

By shape, wherever it stands in a text (`_SHAPES`): keys of known services, and of unknown ones that look like theirs, a
word and 24 random letters and digits; private keys, JSON web tokens, user and password in an address, of which the rest
stays, ``Bearer ...``; also what a text itself gives the name of a secret (``--token=...``, ``password: ...``,
``?sig=...``, ``curl -u ...``), and the secrets of this process's own environment variables. Forty
hexadecimal digits are a key of W&B, but a commit's too: they stay where the name, or the word before them in the text,
says what they are (`_COMMITS`: `git_sha`, `revision`, ``commit 4be1...``, ``/tree/4be1...``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Literal, get_args

from altgrad.config import LONGEST_NOTES

LEFT_OUT = "(left out: looks like a secret)"
"""What stands in place of a secret, or of the part of a text that is one."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ALWAYS = _set(
    "authorization bearer connstr cookie cookies cred credential credentials creds dsn jsessionid jwt netrc otp "
    "passcode passkey passphrase passwd password passwords phpsessid pwd secret secrets sessionid totp userpass "
    "webhook webhooks"
)
_ABOUT = _set(
    "backend column count dataset field kind length level manager method name names policy provider size source "
    "strategy type"
)
_ENDINGS = (
    "passphrase", "passwd", "password", "secret", "passwort", "kennwort", "wachtwoord", "contrasena", "contraseña",
    "motdepasse", "senha", "haslo", "пароль", "密码", "密碼", "パスワード", "비밀번호",
)  # fmt: skip
_PAIRS = frozenset(
    {
        ("connection", "string"), ("conn", "str"), ("session", "id"), ("user", "pass"), ("recovery", "codes"),
        ("recovery", "code"), ("backup", "codes"), ("seed", "phrase"),
    }
)  # fmt: skip
_COUNTS = _set("count max min n num number total")
_HELD = frozenset({"key", "keys", "pass", "pat", "pin", "pw", "token", "tokens"})
_OWNERS = _ALWAYS | _set(
    "access account admin ai anthropic api app auth aws azure bot client cohere comet consumer csrf database db "
    "deploy discord docker email encryption fernet ftp gcp gh github gitlab google gpg groq hf hmac hub huggingface "
    "imap kaggle ldap license login master mistral mongo mongodb mysql neptune ngc npm nvidia oauth openai openrouter "
    "pg pgp postgres private proxy pypi redis refresh replicate root rsa sas security sentry service session signing "
    "slack smtp sql ssh ssl storage stripe subscription sudo telegram tls twilio vault wandb wifi xsrf"
)
_OF_TEXTS = _set(
    "additional assistant audio begin blank bos byte char character class classification cls context cross decoder "
    "distillation dummy each encoder end eod eos eot extra fim first global human image img input lang language last "
    "latent loss mask masked max memory middle min multi new next null num output pad padding per placeholder pooled "
    "prefix prev previous prompt query register sep separator single sos speaker special start stop subword suffix "
    "system target task text think thinking unk unknown use video vision word"
)
_COMMITS = _set(
    "artifact blob branch checksum commit commits digest fingerprint git hash head id name ref rev revision run runs "
    "sha snapshot snapshots tree version"
)
_Kind = Literal["always", "likely", "random", "never"]
"""What is a secret under a name: each text, most texts, texts that look random, or none for its name's sake."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+(?:ñ[a-z]+)?|[^\W\d_a-zA-Z]+")
_HINT = re.compile(r"[:=]|(?<!\S)-|[\w.+/-]{12}|(?i:basic|bearer|is|was|password|_[a-z]{2,12})\s|</")
"""What every text has that holds a secret by its shape; most have none of it."""
_EMPTY = re.compile(r"\s*|none|null|true|false", re.IGNORECASE)
_ORDINARY = re.compile(
    r"\s*|none|null|true|false|yes|no|[-+]?[\d.,_]+(?:e[-+]?\d+)?\s?[kmbt%]?|<[^<>]{0,40}>|\[\w{1,15}\]|\W{1,4}", re.I
)
"""Texts that are no secret under a name such as ``token``: numbers, and what models have for tokens."""
_RANDOM = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z+=]*\d)[A-Za-z0-9+=]{20,}")
_MIXED = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])\S{8,}")
_SHORT_MIXED = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])\S{6,}")

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_SHAPES = re.compile(
    r"""
    (?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))(?:
        gh[oprsu]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | gl(?:cbt|dt|pat|ptt|rt)-[\w-]{16,}
      | hf_(?:[A-Za-z0-9]{30,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{16,}) | api_org_[A-Za-z0-9]{16,}
      | sk-(?:(?:admin|ant|live|or|proj|svcacct|test)-(?=[\w-]{0,60}\d)[\w-]{16,}
             |[A-Za-z0-9]{32,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{16,})
      | [prs]k_(?:live|test)_[A-Za-z0-9]{8,} | whsec_[A-Za-z0-9+/=]{16,}
      | xox[a-z]-[\w-]{8,} | xapp-\d-[\w-]{16,} | A(?:KIA|SIA)[A-Z0-9]{16,}
      | AIza[\w-]{30,} | ya29\.[\w-]{20,} | GOCSPX-[\w-]{20,}
      | eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*
      | AGE-SECRET-KEY-1[A-Z0-9]{30,} | A(?:BIA|CCA)[A-Z0-9]{16} | LTAI[A-Za-z0-9]{16,} | AKCp[A-Za-z0-9]{20,}
      | (?:IQoJb3JpZ2lu|FwoGZXIvYXdz)[\w+/=]{20,} | 1//0[\w-]{20,} | ATATT3[\w=-]{20,} | CCIPAT_\w{20,}
      | sntry[su]_[\w+/=.-]{20,} | (?:dapi|SK|key-|shp(?:at|ca|pa|ss)_|rubygems_|pul-|fw_)[0-9a-f]{32,}
      | dp\.(?:audit|ct|pt|sa|scim|st)\.[\w.-]{20,} | hv[bsr]\.[\w-]{20,} | [\w-]{14}\.atlasv1\.[\w-]{20,}
      | sl\.[\w-]{60,} | tskey-[\w-]{16,} | glsa_[\w-]{20,} | pscale_\w{3,6}_[\w.-]{20,} | xkeysib-[\w-]{20,}
      | wandb_v\d+_\w{20,} | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{40,} | dckr_pat_[\w-]{20,} | dop_v1_[0-9a-f]{40,}
      | SG\.[\w-]{16,}\.[\w-]{16,} | r8_[A-Za-z0-9]{30,} | gsk_[A-Za-z0-9]{30,} | nvapi-[\w-]{30,}
      | \d{8,10}:AA[\w-]{30,}
      | \$(?:apr1|argon2\w{1,2}|2[aby]|[156y])\$[\w./$=,+-]{12,}
      | (?P<hex>(?:[0-9a-f]{40}|[0-9A-F]{40})(?![A-Za-z0-9]))
    )
    | (?<=hooks\.slack\.com/services/)[\w/-]+ | (?<=/api/webhooks/)[\w/-]+ | (?<=webhook\.office\.com/)[^\s"']+
    | (?i:(?<=bearer\s))(?=\S{0,200}?\d|\S{16})[\w.~+/=:-]{6,}
    | (?i:(?<=basic\s))(?:[A-Za-z0-9+/]{8,}={1,2}|(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{16,})
    | (?<=\w://)[^\s/?#@:"'<>]*:(?:[^\s/?#"'<>]*|(?!\d{1,5}(?:[/?#\s]|$))[^\s@"'<>]{1,200})(?=@)
    | (?<=http://|ttps://)[^\s/?#@:"'<>]+(?=@)
    | (?<![\w/.@-])(?!mailto:|[\w.+-]{1,64}:git@)[\w.+-]{1,64}:[^\s:/@"'<>]{1,200}
      (?=@(?:(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b|\d+(?:\.\d+){3}\b|localhost\b|[\w-]{1,63}:\d{2,5}\b))
    """,
    re.VERBOSE,
)
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_-])[a-z][a-z0-9]{0,14}(?:[_-][a-z0-9]{1,8}){0,3}[_-](?P<random>[A-Za-z0-9]{24,})"
)
_WORDY, _DIGITS = re.compile(r"[a-z]{6}"), re.compile(r"\d+")
_LOGIN = re.compile(
    r"""
    (?P<before>
      \b(?:curl|https?|wget)\b[^\n|;&]{0,300}?\s(?:-u|--user)[ =]["']?[^\s"':]{1,80}:
      | (?i:<[\w:.-]{0,40}(?:password|passwd|secret|api_?key)>)
      | \blogin\s{1,3}\S{1,80}\s{1,3}password\s{1,3}
      | \b(?:sshpass|mysql\w{0,9}|mariadb|mongo\w{0,7}|redis-cli|(?:az|docker|podman|helm[ ]registry|oc)[ ]login)\b
        [^\n|;&]{0,200}?\s(?:-p|-a)[ =]?["']?
      | (?i:\b(?:password|passwd|passphrase|passcode|secret|token|key)[ ](?:is|was)[ ]["']?)
        (?=[^\s"']{0,60}\d)(?=[^\s"']{0,60}[A-Za-z])(?=[^\s"']{6})
    )
    (?!\(left[ ]out)[^\s"'<-][^\s"'<]{0,200}
    """,
    re.VERBOSE,
)
"""What programs take for a password without its name, and what a sentence says is one."""
_COMMIT_BEFORE = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(sorted(_COMMITS))})\d*\W{{0,3}}$|\w@$", re.IGNORECASE)
_NAMED = re.compile(
    r"""
    (?:(?<![\w.\\-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))(?:
        --?(?P<option>[A-Za-z][\w.-]{1,80}+)
        (?:[ \t]+(?:<<<[ \t]*)?|\\?["']\s{0,3},\s{0,3}(?=\\?["'][^-]))(?=[^\s=:-])
      | (?P<word>[A-Za-z]{2,40}+(?:_[A-Za-z]{2,40}+){1,6})[ \t]+(?=[^\s=:-])
      | -{0,2}(?P<name>(?:(?i:access|api|auth|private|secret)[ ])?[A-Za-z_][\w.-]{1,80}+)
        \\{0,4}["']?(?P<sign>\s{0,3}(?:=>|:=|[:=]|%3[AaDd])\s{0,3})
    )
    """,
    re.VERBOSE,
)
"""A name in a text that is followed by a value: an option of a command line, ``name=value`` or ``name: value``."""
_QUOTED = re.compile(
    r"""\\{1,4}"(?P<escaped>.*?)(?:\\{1,4}"|$)|"(?P<double>(?:[^"\\]|\\.)*)|'(?P<single>(?:[^'\\]|\\.)*)""", re.DOTALL
)
_END = r"""(?!["'](?:[\s,;)}\]]|$))"""
_WORD = re.compile(rf"(?:{re.escape(LEFT_OUT)}|{_END}\S)+")
_LINE = re.compile(rf"[|>][-+]?(?:\n[ \t]+[^\n]*)+|(?:{_END}[^\n])+")
_PARAMETER = re.compile(r"""[^\s&#"'<>]+""")
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")
_IDENTITY = ("schema", "id", "arm", "status", "created", "ended", "origin", "config")
_FREE = ("notes", "tags", "tracking")
_DEEPEST = 100
_NUMBERS = frozenset({bool, int, float, type(None)})  # most of what a record holds


def mask(value: Any, name: str = "") -> Any:
    """`value` with `LEFT_OUT` in place of what looks like a secret, in texts, lists and mappings of any depth.

    Args:
        value: a value of JSON; tuples stay tuples, and values of other kinds are given back as they are.
        name: the name it stands under; nested ones are dotted.
    """
    return _mask(value, name, _of_environment(), 0)


def mask_record(run: Mapping[str, Any], *, own: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A run.json as `mask` leaves it, but for what decides which run it is.

    Texts of `own` are secrets wherever they stand; default: those of this process's environment variables.
    Of a config of AltGrad's own the free texts are looked at: its other values are words that AltGrad knows.
    """
    own = _of_environment() if own is None else own
    found = {key: value if key in _IDENTITY else _mask(value, key, own, 0) for key, value in run.items()}
    if isinstance(config := run.get("config"), Mapping):
        keys = _FREE if config.get("foreign") is None else config.keys() - {"name", "study"}
        found["config"] = {**config, **{key: _mask(config[key], key, own, 0) for key in keys if key in config}}
        if isinstance(notes := found["config"].get("notes"), str):
            found["config"]["notes"] = notes[:LONGEST_NOTES]  # what stands for a short secret is longer than it
    return found


def left_out(value: Any, name: str = "") -> list[str]:
    """Where in `value` something was left out, as dotted names."""
    if isinstance(value, str):
        return [name] if LEFT_OUT in value else []
    if isinstance(value, Mapping):
        inner = [(f"{name}.{key}".removeprefix("."), each) for key, each in value.items()]
    else:
        inner = [(name, each) for each in value] if isinstance(value, list | tuple) else []
    found = [place for key, each in inner for place in (left_out(each, key) or [key] * (LEFT_OUT in key))]
    return list(dict.fromkeys(found))


def in_words(places: Sequence[str]) -> str:
    """Some of what `left_out` found in a record, for people."""
    shown = [place.replace("config.foreign.", "config.") for place in places[:10]]
    return ", ".join(shown) + (f" and {len(places) - len(shown)} more" if len(places) > len(shown) else "")


def _mask(value: Any, name: str, own: tuple[str, ...], depth: int) -> Any:
    if isinstance(value, str):
        return (_short_text if len(value) < 200 else _text)(value, name, own)
    if type(value) in _NUMBERS or not isinstance(value, dict | list | tuple | Mapping):
        return value
    if depth > _DEEPEST:
        return LEFT_OUT  # nobody looks so deep
    if isinstance(value, list | tuple):
        if {*map(type, value)} <= _NUMBERS:
            return value
        masked = [_mask(each, name, own, depth + 1) for each in value]
        for at, (option, each) in enumerate(pairwise(value), 1):  # ["--token", "..."]
            if _is_option(option) and not _is_option(each):
                masked[at] = _under(option, masked[at])
        name_, each = value if len(value) == 2 else ("", "")  # ["password", "..."]
        if isinstance(name_, str) and isinstance(each, str) and _kind(name_) == "always" and _SHORT_MIXED.match(each):
            masked[1] = LEFT_OUT
        return tuple(masked) if isinstance(value, tuple) else masked
    found: dict[Any, Any] = {}
    for key, inner in value.items():
        shown = key if type(key) is not str or (len(key) < 12 and key.isidentifier()) else _short_text(key, "", own)
        while shown in found:
            shown += "_"
        if type(inner) is int and abs(inner) > 99_999 and _is_code(str(shown).rpartition(".")[2]):
            inner = str(inner)
        found[shown] = inner if type(inner) in _NUMBERS else _mask(inner, f"{name}.{shown}", own, depth + 1)
    label = next((found[key] for key in ("name", "key") if isinstance(found.get(key), str)), "")
    if "value" in found:  # {"name": "HF_TOKEN", "value": "..."}
        found["value"] = _under(label, found["value"])
    return found


def _is_code(name: str) -> bool:
    """Whether a long whole number under this name is a password, and no count of them."""
    return _kind(name) == "always" and _words(name)[0] not in _COUNTS


def _is_option(value: Any) -> bool:
    return isinstance(value, str) and _OPTION.fullmatch(value) is not None


def _under(name: str, value: Any) -> Any:
    return LEFT_OUT if isinstance(value, str) and _is_secret(value, _kind(name)) else value


def _text(text: str, name: str, own: tuple[str, ...]) -> str:
    """What is left of a text under this name."""
    if _is_secret(text, _kind(name)):
        return LEFT_OUT
    for secret in own:
        text = text.replace(secret, LEFT_OUT)
    for _ in range(8 if _HINT.search(text) else 0):  # what stood against a secret may be seen to be one without it
        before, text = text, _PRIVATE_KEY.sub(LEFT_OUT, text)
        text = _LOGIN.sub(rf"\g<before>{LEFT_OUT}", _without_named(text))
        text = _PREFIXED.sub(_without_random, _SHAPES.sub(partial(_without_shape, name), text))
        if text == before:
            break
    return text


_short_text = lru_cache(8192)(_text)


def _is_secret(text: str, kind: _Kind) -> bool:
    if kind == "always":
        return not _EMPTY.fullmatch(text)
    if kind == "likely":
        return not _ORDINARY.fullmatch(text)
    return kind == "random" and _RANDOM.search(text) is not None


def _without_shape(name: str, found: re.Match[str]) -> str:
    if found["hex"]:
        before = found.string[max(0, found.start() - 20) : found.start()]
        if _COMMIT_BEFORE.search(before) or not _COMMITS.isdisjoint(_words(name)):
            return found[0]
    return LEFT_OUT


def _without_random(found: re.Match[str]) -> str:
    """A key of a service that nobody has named here: letters of both cases and digits are mixed as no words are."""
    text = found["random"]
    mixed = len(_DIGITS.findall(text)) > 2 and not text.islower() and not text.isupper()
    return LEFT_OUT if mixed and not _WORDY.search(text) else found[0]


def _without_named(text: str) -> str:
    """The text without the values to which it gives the name of a secret itself."""
    kept, done = [], 0
    for found in _NAMED.finditer(text):
        name, sign, start = found["option"] or found["word"] or found["name"], found["sign"] or "", found.end()
        kind, parameter = _kind(name), text[found.start() - 1 : found.start()] in ("?", "&")
        if parameter and _words(name)[-1:] in (("sig",), ("signature",), ("key",)):
            kind = "always"
        elif parameter and name.lower() == "code":
            kind = "random"
        if kind == "never" or (found["word"] and kind != "always") or start < done or text.startswith(LEFT_OUT, start):
            continue
        form = _PARAMETER if parameter else _LINE if kind == "always" and sign.strip() == ":" else _WORD
        quoted = _QUOTED.match(text, start)
        if (value := quoted or form.match(text, start)) is None:
            continue
        start, end = value.span(value.lastgroup or 0)
        # "token: a piece of text", "set secret_key a1b2c3d4"
        prose = kind == "likely" and not quoted and sign not in ("", "=") and _MIXED
        prose = _SHORT_MIXED if found["word"] else prose
        if prose.match(text[start:end]) if prose else _is_secret(text[start:end], kind):
            kept += [text[done:start], LEFT_OUT]
            done = end
    return "".join([*kept, text[done:]])


@lru_cache(4096)
def _kind(name: str) -> _Kind:
    kinds = {_kind_of(each) for each in (name, name.lower())}  # "APIkey" has other words in lower case
    return next(kind for kind in get_args(_Kind) if kind in kinds)


def _kind_of(name: str) -> _Kind:
    words = _words(name)
    pairs = set(pairwise(words))
    if words[-1:] and words[-1] in _ABOUT:
        return "random" if {*_ALWAYS, *_HELD}.intersection(words) else "never"
    if not _ALWAYS.isdisjoint(words) or any(word.endswith(_ENDINGS) for word in words) or pairs & _PAIRS:
        return "always"
    if any(first in _OWNERS and second in _HELD for first, second in pairs):
        return "always"
    *before, last = (words[:-1] if words[-1:] == ("value",) else words) or ("",)
    if last == "token" and not _OF_TEXTS.intersection(before[-1:]):
        return "likely"
    if last in ("auth", "oauth") or _words(name.rpartition(".")[2]) == ("pass",):
        return "likely"
    return "never" if _HELD.isdisjoint(words) else "random"


@lru_cache(4096)
def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case; ones that are written as one (``apikey``, ``clstoken``) are taken apart."""
    found: list[str] = []
    for word in map(str.lower, _WORDS.findall(name)):
        first = next((word.removesuffix(end) for end in _HELD if word.endswith(end)), "")
        found += [first, word.removeprefix(first)] if first in _OWNERS | _OF_TEXTS else [word]
    return tuple(found)


def _of_environment() -> tuple[str, ...]:
    """Values of environment variables that are secrets by their names; the longest first, one may hold another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= 16 and not value.startswith("/") and _kind(name) in ("always", "likely")
    }
    return tuple(sorted(found, key=len, reverse=True))
