"""The decoder with its roles: token ids in, tensors out.

One causal LM carries all adapters. `encode` turns passages and questions into memory tokens, `prefill` and `step`
generate answers over a KV cache whose rows have different lengths. If there is a kernel for it, the rows of a batch are
packed one after the other. Otherwise they are padded on the right to the longest row of the batch: causal attention
hides the padding from all other positions, so no mask is needed.

Dimensions of shapes: ``[rows, length, hidden]``; a *slot* is a prompt position whose embedding a memory token replaces.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clara_core.model.attention import ATTENTION, Gathered, Packed, Ragged
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.devices import upload
from clara_core.model.fixed_steps import FixedSteps, GraphCapture
from clara_core.model.forked import Forked, ForkedPrompt, KeptHeads
from clara_core.model.kernels import PAGE, Kernel
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory
from clara_core.model.lora import routed
from clara_core.model.paid_attention import Queries
from clara_core.model.weights import RoutedDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_LOGIT_ROWS = 256  # positions whose logits are computed together


class ClaraModel(RoutedDecoder):
    """The forward passes of a causal LM with one adapter a role on every linear layer.

    Attributes:
        kernel: Attention over packed rows and pages (`kernels.find_kernel`); None if none works here.
        capture: Captures decode steps as CUDA graphs; None: they are launched one operation at a time.
    """

    kernel: Kernel | None = None
    capture: GraphCapture | None = None

    def __init__(self, decoder: PreTrainedModel, config: ClaraConfig) -> None:
        super().__init__(decoder, config)
        self._cache_keyword = cache_keyword(self.trunk)

    def encode(
        self,
        sequences: Sequence[Sequence[int]],
        roles: Role | Sequence[Role],
        *,
        pause: Callable[[], None] | None = None,
    ) -> Tensor:
        """Memory tokens of sequences that end in their memory token ids.

        Args:
            sequences: Unpadded token ids, any lengths.
            roles: `Role.COMPRESSOR` or `Role.REASONER`, one for all rows or one a row.
            pause: Called between layers (see `lora.Routing`).

        Returns:
            Tensor: ``[rows, n_mem, hidden]``, the last hidden states at the memory positions.
        """
        lengths, n_mem = [len(ids) for ids in sequences], self.config.n_mem
        if self.packs:
            ids = upload([one for row in sequences for one in row], self.device)[None]  # [1, total]
            states = self._run(self.embed(ids), roles, lengths=lengths, pause=pause)[0]  # [total, hidden]
            ends = list(accumulate(lengths))
            memory = upload([at for end in ends for at in range(end - n_mem, end)], states.device)
            return states.index_select(0, memory).view(len(lengths), n_mem, -1)
        states = self.hidden_states(sequences, roles, pause=pause)  # [rows, length, hidden]
        last = upload([[*range(length - n_mem, length)] for length in lengths], states.device)  # [rows, n_mem]
        return states.take_along_dim(last[:, :, None], dim=1)

    def hidden_states(
        self,
        sequences: Sequence[Sequence[int]],
        roles: Role | Sequence[Role] | None,
        *,
        memories: Tensor | None = None,
        slots: Tensor | None = None,
        pause: Callable[[], None] | None = None,
    ) -> Tensor:
        """Last hidden states ``[rows, length, hidden]`` after the final norm; the values of padding are meaningless."""
        embeddings = self.embed(self.pad(sequences), memories, slots)
        return self._run(embeddings, roles, pause=pause)

    def activation_bytes(self) -> int:
        """Estimated bytes of the activations of one position in a layer, without the KV cache."""
        config = self.decoder.config
        return int(6 * self.hidden + 3 * config.intermediate_size) * self.dtype.itemsize

    def kv_memory(self, pages: int) -> KVMemory:
        """Allocate a KV cache of so many pages, in the layout that this model's decode steps read fastest."""
        memory = KVMemory(self.kv_shape(), pages, heads_first=self.device.type == "cpu" and not self.packs)
        if self.device.type == "cuda" and self.fused is not None and self.own_attention:
            memory.fixed = FixedSteps(self._next_logits, self.kernel, -(-self.context // PAGE), self.capture)
        return memory

    def prefill(
        self,
        sequences: Sequence[Sequence[int]],
        memories: Tensor,
        slots: Sequence[Sequence[bool]],
        cache: KVCache,
        *,
        pause: Callable[[], None] | None = None,
    ) -> Tensor:
        """Read prompts in the role of the cache.

        Args:
            sequences: Token ids of the prompts.
            memories: ``[n_slots, hidden]``: the memory tokens of all slots, row after row.
            slots: For each prompt which positions are memory slots; may be shorter than the prompt.
            cache: Empty rows with room for the prompts; the caller commits it.
            pause: Called between layers (see `lora.Routing`).

        Returns:
            Tensor: Logits of the next token ``[rows, vocab]``.
        """
        lengths = [len(ids) for ids in sequences]
        cache.begin_prompts(lengths, packed=self.packs)
        width = 0 if self.packs else max(lengths)
        ids = [[*row, *[0] * (width - len(row))] for row in sequences]
        filled = [[*row, *[False] * (len(padded) - len(row))] for row, padded in zip(slots, ids, strict=True)]
        if self.packs:
            ids, filled = [list(chain(*ids))], [list(chain(*filled))]
        embeddings = self.embed(upload(ids, self.device), memories, upload(filled, self.device))
        starts = [0, *accumulate(lengths)] if self.packs else [width * row for row in range(len(lengths))]
        last = upload([start + length - 1 for start, length in zip(starts, lengths, strict=False)], self.device)
        if cache.queries is not None:
            cache.queries.at = last
        rows = lengths if self.packs else None
        states = self._run(embeddings, cache.role, cache=cache, lengths=rows, pause=pause)
        return self.head(states.flatten(0, 1).index_select(0, last))

    def read_on(
        self,
        ids: Sequence[int],
        memories: Tensor,
        slots: Sequence[bool],
        cache: KVCache,
        *,
        pause: Callable[[], None] | None = None,
    ) -> Tensor:
        """Read the next piece of one long prompt, after the positions that the cache's row has.

        Args:
            ids: Token ids of the piece.
            memories: ``[n_slots, hidden]``: the memory tokens of its slots.
            slots: Which positions of the piece are memory slots.
            cache: One row with room for the piece; the caller commits it.
            pause: Called between layers (see `lora.Routing`).

        Returns:
            Tensor: Logits of the next token ``[1, vocab]``.
        """
        positions, ragged = cache.begin_chunk(len(ids), self.kernel, gather=not self.own_attention)
        if cache.queries is not None:
            cache.queries.at = upload([len(ids) - 1], self.device)
        embeddings = self.embed(upload([ids], self.device), memories, upload([slots], self.device))
        states = self._run(embeddings, cache.role, cache=cache, positions=positions[None], ragged=ragged, pause=pause)
        return self.head(states[:, -1])

    def step(self, tokens: Sequence[int] | Tensor, cache: KVCache) -> Tensor:
        """Append one token to each row of the cache, which the caller commits: logits of the next ``[rows, vocab]``.

        On a GPU the logits are valid until the next step.
        """
        # The fused step does not record its queries.
        fuses = self.own_attention and cache.queries is None
        fuses = fuses and self.fused is not None and cache.role in (self.fused.role, None)
        if fuses and cache.memory.fixed is not None:
            return cache.memory.fixed.run(tokens, cache)
        ids, positions, ragged = cache.begin_step(tokens, self.kernel, gather=not self.own_attention)
        if fuses:
            return self._next_logits(ids, positions, cache, ragged)
        embeddings: Tensor = self.decoder.get_input_embeddings()(ids)  # [rows, hidden]
        states = self._run(embeddings[:, None], cache.role, cache=cache, positions=positions[:, None], ragged=ragged)
        return self.head(states[:, -1])

    def _next_logits(self, ids: Tensor, positions: Tensor, cache: KVCache, ragged: Ragged) -> Tensor:
        """Logits ``[rows, vocab]`` of a fused step over ``ids [rows]``."""
        if self.fused is None:
            raise RuntimeError("this decoder has no fused step")
        embeddings: Tensor = self.decoder.get_input_embeddings()(ids)  # [rows, hidden]
        return self.head(self.fused(embeddings, positions, cache, ragged))

    def judge(self, prompts: Sequence[ForkedPrompt], memories: Tensor) -> list[Tensor]:
        """Log-probabilities of given tokens in the generator's role, with windows of each prompt hidden.

        Args:
            prompts: Prompts with their continuations; together one pass.
            memories: ``[n_slots, hidden]``: the memory tokens of all slots that are computed, prompt after prompt.

        Returns:
            list: One tensor ``[rows, continuation]`` a prompt, float32, natural logarithms.
        """
        ids, slots, positions = (
            upload([list(chain(*parts))], self.device)  # [1, total]
            for parts in (
                [prompt.token_ids() for prompt in prompts],
                [prompt.is_slot() for prompt in prompts],
                [prompt.rotary_positions() for prompt in prompts],
            )
        )
        ragged = Forked(prompts, self.device, self.dtype)
        embeddings = self.embed(ids, memories, slots)
        heads = KeptHeads(prompts) if any(prompt.kept for prompt in prompts) else None
        states = self._run(embeddings, Role.GENERATOR, cache=heads, positions=positions, ragged=ragged)[0]
        starts = [0, *accumulate(prompt.positions for prompt in prompts)]
        places = [prompt.predicting_positions(start) for prompt, start in zip(prompts, starts, strict=False)]
        targets = [token for prompt in prompts for token in prompt.continuation * len(prompt.hidden)]
        rows = states.index_select(0, upload(list(chain(*places)), states.device))
        pieces = zip(rows.split(_LOGIT_ROWS), upload(targets, states.device).split(_LOGIT_ROWS), strict=True)
        found = torch.cat([_log_probability(self.head(part), tokens) for part, tokens in pieces])
        sizes = [len(prompt.hidden) * len(prompt.continuation) for prompt in prompts]
        return [
            part.view(len(prompt.hidden), len(prompt.continuation))
            for prompt, part in zip(prompts, found.split(sizes), strict=True)
        ]

    def head(self, states: Tensor) -> Tensor:
        """Logits of hidden states ``[..., hidden]`` -> ``[..., vocab]``."""
        logits: Tensor = self.decoder.get_output_embeddings()(states)
        return logits

    def pad(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Token ids padded on the right with id 0: ``[rows, length]``."""
        length = max(len(ids) for ids in sequences)
        return upload([[*ids, *[0] * (length - len(ids))] for ids in sequences], self.device)

    def embed(self, ids: Tensor, memories: Tensor | None = None, slots: Tensor | None = None) -> Tensor:
        """Embeddings ``[rows, length, hidden]`` of ``ids [rows, length]``, the slots overwritten by memory tokens."""
        embeddings: Tensor = self.decoder.get_input_embeddings()(ids)
        if memories is None or slots is None or not memories.numel():
            return embeddings
        return embeddings.masked_scatter(slots[:, :, None], memories.to(embeddings))

    def queries(self) -> Queries:
        """A recorder of the attention queries of the upper half of the layers, for one pass."""
        return Queries(self.kv_shape().layers // 2)

    @property
    def own_attention(self) -> bool:
        """Whether attention goes through `attention.attend` instead of a function of transformers."""
        return bool(self.decoder.config._attn_implementation == ATTENTION)  # noqa: SLF001 - there is no public name

    @property
    def packs(self) -> bool:
        """Whether the rows of a batch are packed one after the other instead of padded."""
        return self.kernel is not None and self.own_attention

    def _run(
        self,
        embeddings: Tensor,
        roles: Role | Sequence[Role] | None,
        *,
        cache: KVCache | KeptHeads | None = None,
        lengths: Sequence[int] | None = None,
        positions: Tensor | None = None,
        ragged: Ragged | None = None,
        pause: Callable[[], None] | None = None,
    ) -> Tensor:
        """Run the decoder stack over ``embeddings [rows, length, hidden]``.

        Args:
            embeddings: Embeddings of padded rows, of packed ones (with `lengths`), or of one position a row.
            roles: One role for all rows, one a row, or None for the base decoder without adapters.
            cache: Stores keys and values, or gives those of kept heads.
            lengths: Lengths of the texts that are packed in one row.
            positions: Rotary positions ``[rows, length]``; None: from 0 on in each row or text.
            ragged: Attention over the rows, if it is not plain causal attention.
            pause: Called between layers.
        """
        rows, length, _ = embeddings.shape
        device = embeddings.device
        options: dict[str, object] = {}
        if lengths is not None:
            if self.kernel is None:
                raise RuntimeError("packed rows need a kernel")
            ragged = Packed(self.kernel, lengths, device)
            positions = upload([at for one in lengths for at in range(one)], device)[None]  # [1, total]
        elif positions is None:
            positions = torch.arange(length, device=device).expand(rows, length)
        if ragged is not None and self.own_attention:
            options["ragged"] = ragged
        if cache is not None and cache.queries is not None:
            options["queries"] = cache.queries
        # The attention functions of transformers need a mask, over copies of the rows or over forked prompts.
        mask = ragged.mask if isinstance(ragged, Gathered | Forked) and not self.own_attention else None
        routing = routed(roles, self.config.lora_r, lengths=lengths, device=device, dtype=embeddings.dtype, pause=pause)
        with routing:
            output = self.trunk(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                use_cache=cache is not None,
                **{self._cache_keyword: cache},
                **options,
            )
        states: Tensor = output.last_hidden_state
        return states


def cache_keyword(trunk: nn.Module) -> str:
    """Name of the KV cache argument of a decoder's forward.

    transformers renamed ``past_key_values`` to ``cache`` in 5.24, model by model. A forward would ignore the wrong name
    in its ``**kwargs`` and write nothing into the cache, so the name is read from the signature.
    """
    return "cache" if "cache" in inspect.signature(type(trunk).forward).parameters else "past_key_values"


def _log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of ``tokens [n]`` by ``logits [n, vocab]``: ``[n]``, float32."""
    logits = logits.float()
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)
