"""Run files in the guest's LiteRT, between marks that the instruction counter sees: see `count_instructions.c`.

    python3.11 guest_litert.py SITE JOB

SITE holds the guest's packages. JOB holds `job.json` and `feeds.npz`; the outputs are written beside them. This
file runs in the guest, so it imports nothing of tflite_export.
"""

import json
import os
import sys
from typing import Any

MARK = 1000003


def mark() -> None:
    """Close a descriptor that was never opened: a call into the kernel that nothing else makes."""
    try:
        os.close(MARK)
    except OSError:
        return
    raise RuntimeError(f"descriptor {MARK} was open")


def details(interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return tensor indices of inputs and outputs by name: the signature's names where the file has one."""
    signatures = interpreter.get_signature_list()
    if signatures:
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
        runner = interpreter.get_signature_runner(key)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        return ({n: d["index"] for n, d in inputs.items()}, {n: d["index"] for n, d in outputs.items()})
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return ({d["name"]: d["index"] for d in inputs}, {d["name"]: d["index"] for d in outputs})


def main(site: str, folder: str) -> None:
    """Do a job."""
    sys.path.insert(0, site)
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    with open(f"{folder}/job.json", encoding="utf-8") as file:
        job = json.load(file)
    # Named "sample/input", by position.
    feeds = np.load(f"{folder}/feeds.npz")
    loaded = []
    for number, case in enumerate(job["files"]):
        interpreter = Interpreter(f"{folder}/{number}.tflite", num_threads=1)
        inputs, outputs = details(interpreter)
        for position, name in enumerate(case["inputs"]):
            interpreter.resize_tensor_input(inputs[name], feeds[f"0/{position}"].shape, strict=False)
        interpreter.allocate_tensors()
        answers = {}
        for batch in range(job["batches"]):
            interpreter.reset_all_variables()
            for position, name in enumerate(case["inputs"]):
                value = feeds[f"{batch}/{position}"]
                interpreter.set_tensor(inputs[name], value)
            interpreter.invoke()
            for position, name in enumerate(case["outputs"]):
                answers[f"{batch}/{position}"] = interpreter.get_tensor(outputs[name])
        np.savez(f"{folder}/outputs-{number}.npz", **answers)
        for _ in range(job["warm_up"] - 1):
            interpreter.invoke()
        loaded.append(interpreter)
    for _ in range(job["rounds"]):
        for interpreter in loaded:
            mark()
            interpreter.invoke()
            mark()


if __name__ == "__main__":
    main(*sys.argv[1:])
