"""What an error of another library says: its reason, without what Keras, TensorFlow and the converter wrap it in."""

from __future__ import annotations

import re

__all__ = ["LENGTH", "operators_without_kernel", "reason_of"]

LENGTH = 400
"""Characters of a reason, at most."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What Keras puts before and behind the reason, TensorFlow around it, and MLIR before it: where the operation stands.
_AROUND = (
    re.compile(r"Exception encountered when calling [^\n]*?\.call\(\)\.\s*"),
    re.compile(r"\s*Arguments received by .*\Z", re.DOTALL),
    re.compile(r"\{\{[^}]*\}\}\s*"),
    re.compile(r"\s*\[Op:\w+\](?: name:\s*)?"),
    re.compile(r"Could not translate MLIR to FlatBuffer\.\s*"),
)
_MLIR_ERROR = re.compile(r"error: (?:loc\(.*?\)\): |loc\(.*?\): )?(.*)")
_PLACE = re.compile(r'fused\["(\w+):", "([^"@]+)@')
_WITHOUT_KERNEL = re.compile(r"(?:TF Select|Custom) ops: ([^\n]+)")


def reason_of(error: BaseException | str) -> str:
    r"""Return the reason that an error gives, as one line.

    Example:
        >>> reason_of("Exception encountered when calling Dense.call().\n\nnot today\n\nArguments received by Dense...")
        'not today'
    """
    text = _COLOUR.sub("", str(error))
    for pattern in _AROUND:
        text = pattern.sub("", text)
    if "<unknown>:0: error:" in text:
        found = [match.strip() for match in _MLIR_ERROR.findall(text)]
        text = "; ".join(dict.fromkeys(reason.rstrip(":") for reason in found if reason))
    text = " ".join(text.split())
    name = "" if isinstance(error, str) else type(error).__name__
    text = text or name or "no message"
    text = text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."
    return text if not name or text == name else f"{name}: {text}"


def operators_without_kernel(error: BaseException | str) -> tuple[str, ...]:
    r"""Return the TensorFlow operators that a converter's error says TFLite has no operator for, each with its place.

    Example:
        >>> operators_without_kernel("loc(fused[\"Erfinv:\", \"net/gauss/Erfinv@serve_9\"])\nCustom ops: Erfinv")
        ("Erfinv of 'net/gauss/Erfinv'",)
    """
    text = str(error)
    places = dict(_PLACE.findall(text))
    listed = [name.strip() for names in _WITHOUT_KERNEL.findall(text) for name in names.split(",")]
    return tuple(f"{name} of '{places[name]}'" if name in places else name for name in dict.fromkeys(listed))
