"""TRL's DPOTrainer and this project, given the same weights, pairs, order, optimiser and lr, are the same training."""

import numpy as np
import pytest
import torch

from src.data.text import hh_rlhf
from src.errors import BadInput
from src.policy.pretrained import _load_model, smollm2
from tests.trl_lm import LOGGED, REAL_PAIRS, ours, overrides, trl

PAIRS, BATCH, LR = 64, 4, 1e-5
MAX_LENGTH = 96  # short enough for a test; the benchmark has 512


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PAIRS.exists(), reason="needs ../shared/data/hh-harmless-dev.jsonl.gz")
def test_16_updates_of_smollm2_are_trls():
    try:
        spec = smollm2("package")
    except BadInput as error:
        pytest.skip(str(error))
    here = ours(overrides(PAIRS, BATCH, LR, MAX_LENGTH))
    data = hh_rlhf(path=str(REAL_PAIRS), limit=PAIRS, max_length=MAX_LENGTH, tokenizer=spec.tokenizer())
    there = trl(_load_model(spec, torch.float32), spec.tokenizer(), data, BATCH, LR)
    assert len(here.logged) == len(there.logged) == PAIRS // BATCH
    for name in LOGGED:
        mine, theirs = (np.array([row[name] for row in side.logged]) for side in (here, there))
        # Log-probs are sums of up to a hundred tokens, hundreds of nats.
        allowed = 1e-5 * np.abs(theirs).max() if name.startswith("logps") else 1e-3
        assert np.abs(mine - theirs).max() < allowed, name
    assert max(row["rewards/margins"] for row in here.logged) > 0.05
