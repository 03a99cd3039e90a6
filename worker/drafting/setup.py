"""The drafter that a server is configured to have: loaded, checked against the model, and made."""

from __future__ import annotations

from msgspec import structs

from accelgen.proto.config import NGRAM, Config
from accelgen.worker.drafting.drafter import ModelDrafter
from accelgen.worker.drafting.ngram import NgramDrafter
from accelgen.worker.drafting.proposal import Drafter
from accelgen.worker.drafting.vocabulary import check_vocabulary
from accelgen.worker.faults import LoadError
from accelgen.worker.memory import KvSize
from accelgen.worker.model import Loaded, load_model
from accelgen.worker.runner import Runner


def load_drafter(config: Config, loaded: Loaded) -> Loaded | None:
    """The drafter model, if there is to be one. Raises LoadError when it cannot draft for the model."""
    if config.drafter in ("", NGRAM):
        return None
    try:
        helper = load_model(structs.replace(config, model=config.drafter))
    except LoadError as error:
        raise LoadError(f"drafter: {error}") from error
    check_vocabulary(helper, loaded)
    return helper


def make_drafter(config: Config, runner: Runner | None, vocab_size: int) -> Drafter | None:
    """What drafts for a model of `vocab_size`: a smaller one (`runner`), the prompt itself, or nothing."""
    if runner is not None:
        return ModelDrafter(runner, config.draft_sampling == "coupled", vocab_size)
    return NgramDrafter() if config.drafter == NGRAM else None


def short_drafter(helper: Loaded | None, kv: KvSize) -> str:
    """What is to be said of a drafter that is exact for fewer positions than requests may have; "" if it is not."""
    if helper is None or helper.checkpoint.max_positions >= kv.max_model_len:
        return ""
    return (
        f"nothing is drafted beyond {helper.checkpoint.max_positions} tokens, where the drafter ends"
        f" (max_model_len is {kv.max_model_len})"
    )
