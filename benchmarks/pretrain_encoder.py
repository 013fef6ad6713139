"""Make the shipped image encoder: ``python benchmarks/pretrain_encoder.py --out FILE``.

With ``--readout FILE`` the readout of the shipped encoder is made instead.

Prints held-out correlations with the true lesion load and the file's SHA-256, which goes to
`fedhealth/models/pretrained.py`. The same seed gives the same file on the same machine and torch version; on
another processor, sums may be ordered differently, which is why the file ships and its digest is checked.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from fedhealth.models.image_encoder import ImageEncoder
from fedhealth.models.phantoms import read_anatomy
from fedhealth.models.pretrained import (
    ENCODER_EMBEDDING_SIZE,
    ENCODER_WIDTHS,
    LABEL,
    load_phantom_encoder,
)
from fedhealth.models.pretraining import (
    PretrainingPlan,
    fit_readout,
    load_correlation,
    pretrain,
)

HELD_OUT_SEED = 1_000_003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="write the weights here")
    parser.add_argument("--readout", type=Path, default=None, help="write the readout here")
    parser.add_argument("--seed", type=int, default=PretrainingPlan().seed)
    parser.add_argument("--steps", type=int, default=PretrainingPlan().num_steps)
    parser.add_argument("--quick", action="store_true", help="50 steps: shows that it runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.readout is not None:
        print(json.dumps(make_readout(arguments.readout)))
        return
    plan = PretrainingPlan(
        seed=arguments.seed, num_steps=50 if arguments.quick else arguments.steps
    )
    anatomy, start = read_anatomy(), time.perf_counter()
    encoder = pretrain(anatomy, plan, on_step=_report)
    seconds = time.perf_counter() - start
    count = 200 if arguments.quick else 2000
    correlations = {
        str(size): round(
            load_correlation(encoder, anatomy, size=size, count=count, seed=HELD_OUT_SEED), 4
        )
        for size in (16, 32)
    }
    payload = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()},
        metadata={
            "label": LABEL,
            "generator": "benchmarks/pretrain_encoder.py",
            "seed": str(plan.seed),
            "steps": str(plan.num_steps),
            "held_out_correlation": json.dumps(correlations),
        },
    )
    if arguments.out is not None:
        arguments.out.write_bytes(payload)
    result = {
        "schema_version": 1,
        "benchmark": "pretrain_encoder",
        "steps": plan.num_steps,
        "phantoms": plan.num_steps * plan.batch_size,
        "seconds": round(seconds, 1),
        "held_out_correlation": correlations,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


def make_readout(path: Path) -> dict[str, object]:
    encoder = ImageEncoder(ENCODER_WIDTHS, ENCODER_EMBEDDING_SIZE)
    load_phantom_encoder(encoder)
    readout = fit_readout(encoder, read_anatomy(), sizes=(32, 16), count=2000, seed=20)
    payload = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in readout.state_dict().items()},
        metadata={"label": LABEL, "generator": "benchmarks/pretrain_encoder.py --readout"},
    )
    path.write_bytes(payload)
    return {
        "schema_version": 1,
        "benchmark": "pretrain_encoder",
        "sha256": hashlib.sha256(payload).hexdigest(),
    }


def _report(step: int, loss: float) -> None:
    if step % 250 == 0:
        print(f"step {step}: loss {loss:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
