"""What of the optional runtimes is not there, for the marks that skip tests."""

from tflite_export import ExportError


def missing(*finders):
    """Return what is not installed here, as one text, or an empty one."""
    reasons = []
    for find in finders:
        try:
            find()
        except ExportError as error:
            reasons.append(str(error))
    return "; ".join(reasons)
