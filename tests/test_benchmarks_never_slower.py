"""The grid's candidates: each encoding really is in its file, and answers as the model does."""

import numpy as np

from benchmarks.never_slower import Case, candidates
from tflite_export.runtimes.litert import LiteRTSession


def test_every_candidate_answers_as_the_model():
    case = Case(1, 64, None, 0.75, 4, layers=2)
    model, feed = case.model(), case.data()[:1]
    files = candidates(case, model)
    assert set(files) == {"dense", "CSR + DENSIFY", "1x4 blocks", "CSR"}
    wanted = np.asarray(model(feed, training=False))
    for content in files.values():
        session = LiteRTSession(content)
        (got,) = session.run([feed], list(session.inputs), list(session.outputs))
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    assert all(len(content) < len(files["dense"]) for name, content in files.items() if name != "dense")
