"""The options of the chat models of both frameworks: the name, type, default and help text of each."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from clara_core.engine.answer_options import Cited, Reading
from clara_core.engine.logprobs import MOST_ALTERNATIVES


class ChatOptions(BaseModel):
    """How an answer is sampled, and what is returned beside its text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    max_tokens: int = Field(default=128, ge=1)
    """Maximum number of tokens to write."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy and reproducible."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that is sampled from."""
    seed: int | None = None
    """Makes sampling reproducible."""
    stop: list[str] | None = None
    """Strings that end an answer and are not part of it; `stop` of a call replaces them."""
    verbatim: bool | None = None
    """Whether an answer from documents is words of one of them; None: as the checkpoint says."""
    logprobs: bool = False
    """Whether to return the log-probabilities of the tokens written."""
    top_logprobs: int = Field(default=0, ge=0, le=MOST_ALTERNATIVES)
    """Number of alternatives for each token; needs `logprobs`."""
    citations: Cited = False
    """Whether the answer is judged with each document hidden, to find what supports it. "attention" costs nearly
    nothing instead, but misleads for up to a quarter of the wrong answers."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """Confidence below which the text is withheld; 0 withholds nothing but computes the confidence."""
    read: Reading = "memory"
    """How to read the documents; "again" also reads the best document alone if the evidence contradicts the answer."""
