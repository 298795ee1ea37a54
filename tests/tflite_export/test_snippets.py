"""The code of the pages on deployment does what they say, where its runtime is installed."""

import dataclasses
import pathlib
import re
import subprocess

import numpy as np
import pytest

from tflite_export import ExportError, export, read_golden
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime
from tflite_export.verification.golden import write_golden
from tflite_export.web.node import find_node

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "deploy" / "web.md"
PROGRAM = """
import fs from 'node:fs';
import {startLiteRt} from '%s';
import {checkGolden, readGolden} from './deploy.mjs';

const litert = await startLiteRt('%s', 'plain', () => {});
const model = await litert.loadAndCompile(new Uint8Array(fs.readFileSync('model.tflite')), {accelerator: 'wasm'});
const golden = readGolden(new Uint8Array(fs.readFileSync('golden.safetensors')).buffer);
console.log('share of what is allowed:', await checkGolden(litert, model, golden));
"""


@pytest.fixture
def run_in_node(tmp_path):
    """A function that runs the page's code on the model and the golden file in a folder."""
    try:
        runtime, node = find_web_runtime(), find_node()
    except ExportError as error:
        pytest.skip(str(error))
    (code,) = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "deploy.mjs").write_text(code, encoding="utf-8")
    program = PROGRAM % ((ASSETS / "node_litert.mjs").as_uri(), runtime)
    (tmp_path / "main.mjs").write_text(program, encoding="utf-8")

    def run():
        return subprocess.run([node, "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_page_for_the_web_checks_golden_outputs(run_in_node, tmp_path, dense_net, inputs):
    export(
        dense_net,
        tmp_path / "model.tflite",
        target="web",
        data=inputs(dense_net)[0],
        batch_size=1,
        golden=tmp_path / "golden.safetensors",
    )
    done = run_in_node()
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.rsplit(":", 1)[1]) < 1
    golden = read_golden(tmp_path / "golden.safetensors")
    wrong = {name: values + np.float32(1) for name, values in golden.outputs.items()}
    write_golden(tmp_path / "golden.safetensors", dataclasses.replace(golden, outputs=wrong))
    done = run_in_node()
    assert done.returncode != 0
    assert "sample 0: off by" in done.stderr
