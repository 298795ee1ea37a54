import unicodedata

import keras
import pytest

import keras_prune as kp
import tflite_export as tx
from keras_prune.files.atomic import PathError
from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_text
from tests.tflite_export.graphs import Net
from tflite_export import ExportError
from tflite_export.file import flatbuffer

NAME = "\x1b[2J\x1b[31mdense\r\n\x9b0m\u202egnol\x07\u2028\udc80"
SHOWN = r"\x1b[2J\x1b[31mdense\r\n\x9b0m\u202egnol\x07\u2028\udc80"


def test_every_character_that_acts_is_escaped_and_no_other():
    assert printable(NAME, lines=False) == SHOWN
    assert printable("größe → 3 ─ 語 [bold]:smile:") == "größe → 3 ─ 語 [bold]:smile:"
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    everything = "".join(map(chr, range(0x3100))) + "\U000e0001"
    kept = set(printable(everything, lines=False)) - set(map(chr, range(0x20, 0x7F)))
    joiners = {"\u200c", "\u200d"}
    assert {each for each in kept if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp")} == joiners
    assert printable("a\nb\tc") == "a\nb\tc"
    assert printable("a\nb\tc", lines=False) == r"a\nb\tc"


@pytest.mark.parametrize("kind", [ExportError, PathError])
@pytest.mark.parametrize("place", range(4))
def test_errors_show_no_name_raw(kind, place):
    parts = ["subject", "rule", "received", "way out"]
    parts[place] = NAME.replace("\n", "")
    shown = str(kind(*parts))
    assert SHOWN.replace(r"\n", "") in shown
    assert shown.isprintable()


def test_tables_show_no_name_raw_and_keep_their_columns():
    from rich.table import Table
    from rich.text import Text

    table = Table(title=NAME)
    table.add_column(NAME, no_wrap=True)
    table.add_column("[b]", no_wrap=True)
    table.add_row(NAME, "1")
    table.add_row("x" * len(SHOWN), "2")
    shown = plain_text(table, Text(NAME), width=200)
    assert shown.replace("\n", "").isprintable()
    assert shown.count(SHOWN) == 3
    assert "[b]" in shown
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1])


def test_reports_of_models_and_files_show_no_name_raw(tmp_path):
    """A layer, and a tensor of a file with an operator of its own, named by who made them."""
    bad = "a\x1b[2Jb\u202ec"
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name=bad), keras.layers.Dense(2)])
    made = Net(1, 8)
    output = made.dense(made.x, 4)
    made.graph.tensors[output].name = bad.encode()
    content = made.content(made.unary(output, "CUSTOM"))
    file = flatbuffer.read(content)
    file.operatorCodes[-1].customCode = bad.encode()
    shown = {
        "report": str(kp.report(model)),
        "plan": str(kp.structured.plan(model, params=0.5)),
        "inspect": str(tx.inspect(flatbuffer.write(file))),
    }
    for what, text in shown.items():
        assert text.replace("\n", "").isprintable(), what
        assert r"\x1b[2J" in text.replace("\n", ""), what
