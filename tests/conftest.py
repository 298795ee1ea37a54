"""One quiet, reproducible TensorFlow for each test process."""

import os

# Read by the libraries when they are first imported, and handed down to the processes that tests start.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Processes share two cores: one thread for each operation. A second inter-op thread, because the replicas
# of a MirroredStrategy wait for one another.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("reproducible")


def pytest_configure(config):
    """Makes two logical CPUs, which TensorFlow allows only before it has run anything, and traces functions faster."""
    if config.getoption("numprocesses", None):
        return  # the workers run the tests: the process that starts them needs no TensorFlow
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # A test traces many functions and runs each a few times: TensorFlow's optimizer of graphs takes a fifth of its
    # time. Processes that tests start, the notebooks among them, and `.ci/readme` run with it, as users do.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(autouse=True)
def _fresh_keras():
    """The same seeds, layer names and dtype policy for a test, whatever ran before it in its process."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def mirrored():
    """One strategy over two logical CPUs: the collectives of two in one process take each other's messages."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
