"""Which files run in this process, and which in a child: one rule, chosen in one module."""

import ast
import collections

import pytest

from tests.test_architecture import MODULES
from tflite_export import ExportError, Limits
from tflite_export.runtimes.opening import open_foreign, open_own

OWN = {
    "tflite_export.bench.tune",
    "tflite_export.compression.judging",
    "tflite_export.demo",
    "tflite_export.latency",
    "tflite_export.runtimes.arm64_guest",
    "tflite_export.stages.planned",
    "tflite_export.verification.ports",
    "tflite_export.verification.verify",
    "tflite_export.web.limitations",
    "tflite_export.web.web_session",
}
"""What may load a file into this process: it has made the file, or does so for somebody who has."""
FOREIGN = {
    "tflite_export.bench.served_files",
    "tflite_export.bench.timing",
    "tflite_export.measures.refusals",
    "tflite_export.tflm.mcu",
    "tflite_export.tflm.verifying",
    "tflite_export.web.web_session",
}


def imported():
    """Name that is imported -> modules that import it."""
    found = collections.defaultdict(set)
    for module, path in MODULES.items():
        if module.startswith("tflite_export."):
            for node in ast.walk(ast.parse(path.read_text())):
                for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                    found[alias.name].add(module)
    return found


def test_only_one_module_chooses_where_a_file_runs():
    users = imported()
    assert users["LiteRTSession"] == {"tflite_export.runtimes.litert_child", "tflite_export.runtimes.opening"}
    assert users["IsolatedSession"] == {"tflite_export.runtimes.opening"}
    assert users["Interpreter"] == {"tflite_export.runtimes.litert"}
    assert users["open_own"] <= OWN
    assert users["open_foreign"] == FOREIGN


def test_a_foreign_file_keeps_the_limits_that_are_given(make_dense_net, tmp_path, inputs):
    from tflite_export import export

    net = make_dense_net()
    export(net, tmp_path / "m.tflite", data=inputs(net)[0])
    content = (tmp_path / "m.tflite").read_bytes()
    with open_foreign(content, limits=Limits(seconds=17.0, memory=2**31)) as session:
        assert (session._limits.seconds, session._limits.memory) == (17.0, 2**31)
        there = session.run(inputs(net), list(session.inputs), list(session.outputs))
    here = open_own(content)
    assert there[0].tolist() == here.run(inputs(net), list(here.inputs), list(here.outputs))[0].tolist()
    with pytest.raises(ExportError, match="KeyError"):  # the child has forgotten a closed session
        session._process.ask({"do": "invoke", "session": session._number, "subject": "m"}, [], session._limits)
