"""Calls of `RemoteEngine` about existing texts: attribution, log-probability, fidelity of memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from clara_core.data.memory import Memory
from clara_core.engine.checks import user_turn
from clara_core.engine.remote.instance import RemoteInstance, weight_of
from clara_core.engine.remote.wire import attribution_from_wire, fidelity_from_wire
from clara_core.engine.sampling import Answer

if TYPE_CHECKING:
    from clara_core.engine.evidence import Attribution
    from clara_core.engine.fidelity import Fidelity

_ATTRIBUTE: Final = "/v1/clara/attribute"
_LOGPROB: Final = "/v1/clara/logprob"
_FIDELITY: Final = "/v1/clara/fidelity"


class RemoteEvidence(RemoteInstance):
    """Calls about texts that were generated or written before."""

    def attribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        return attribution_from_wire(self.connection.post(_ATTRIBUTE, self._text_payload(question, memories, answer)))

    async def aattribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        await self._aload()
        return attribution_from_wire(
            await self.connection.apost(_ATTRIBUTE, self._text_payload(question, memories, answer))
        )

    def logprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        return float(self.connection.post(_LOGPROB, self._text_payload(question, memories, text))["logprob"])

    async def alogprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        await self._aload()
        return float((await self.connection.apost(_LOGPROB, self._text_payload(question, memories, text)))["logprob"])

    def fidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        replies = [self.connection.post(_FIDELITY, each) for each in self._fidelity_payloads(memories, instruction)]
        return [fidelity_from_wire(each) for part in replies for each in part["results"]]

    async def afidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        await self._aload()
        parts = self._fidelity_payloads(memories, instruction)
        replies = [await self.connection.apost(_FIDELITY, each) for each in parts]
        return [fidelity_from_wire(each) for part in replies for each in part["results"]]

    def _text_payload(self, question: str, memories: Sequence[Memory], answer: object) -> dict[str, Any]:
        user_turn(question)
        text = answer.draft or answer.text if isinstance(answer, Answer) else answer
        if not isinstance(text, str):
            raise TypeError(f"the answer must be a string or an Answer, got {type(text).__name__}: {text!r:.60}")
        return {"question": question, "documents": self._as_documents(memories), "text": text}

    def _fidelity_payloads(self, memories: Sequence[Memory], instruction: str | None) -> list[dict[str, Any]]:
        documents = self._as_documents(memories)
        return [
            {"documents": documents[part], "instruction": instruction}
            for part in self._slices(weight_of(each["text"]) for each in documents)
        ]
