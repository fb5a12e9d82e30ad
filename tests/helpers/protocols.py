"""Short protocols, by which students take a moment."""

from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol, EvalProtocol, ProbeProtocol

SHORT = {
    "tiny": EvalProtocol("tiny", epochs=12, full_data_epochs=2, lrs=(0.05,)),
    "probe-tiny": ProbeProtocol("probe-tiny", epochs=3, full_data_epochs=2, lrs=(0.05,)),
    "crops-tiny": CropProtocol("crops-tiny", epochs=3, full_data_epochs=1, batch_size=16, lrs=(0.005,)),
    "hello-tiny": CropProtocol(
        "hello-tiny", epochs=3, full_data_epochs=1, batch_size=16, lrs=(0.005,), loss="mse", ce_weight=0.025
    ),
}


def know_short_protocols() -> None:
    """Let flags of this process name them."""
    PROTOCOLS.update(SHORT)
