"""One chain twice: embeddings, FAISS, a cross-encoder and a chat model that reads text; then CLaRa in their places.

    pip install 'clara-rag[langchain]' langchain-classic langchain-community faiss-cpu
    python examples/migration.py [MODEL]

The old side runs without a network and without keys: the three classes below stand in for the models of a usual stack,
with the interfaces of LangChain. `OpenAIEmbeddings`, `HuggingFaceCrossEncoder` and `ChatOpenAI` go in the same places.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_classic.retrievers.document_compressors.cross_encoder import BaseCrossEncoder
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder
from langchain_clara import ChatClara, ClaraVectorStore, create_clara_documents_chain

DATA = Path(__file__).parent / "data"
Chain = Runnable[dict[str, Any], dict[str, Any]]  # {"input"} -> {"input", "context", "answer"}
QUESTIONS = ("When does the pottery course begin?", "How high is the Eiffel Tower?")
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from: {context}"), ("human", "{input}")])


def words(text: str) -> set[str]:
    """Words of a text without their endings and without the shortest, for the stand-ins."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.lower())}


class WordEmbeddings(Embeddings):
    """Stands in for `OpenAIEmbeddings`: a text is the set of its words, hashed to 512 numbers."""

    def embed_query(self, text: str) -> list[float]:
        """A one for each word."""
        vector = [0.0] * 512
        for word in words(text):
            vector[int(hashlib.sha256(word.encode()).hexdigest(), 16) % 512] = 1.0
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """As questions."""
        return [self.embed_query(text) for text in texts]


class WordOverlap(BaseCrossEncoder):
    """Stands in for `HuggingFaceCrossEncoder`: the share of the question's words that the text has."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """One number for each pair of question and text."""
        return [len(words(question) & words(text)) / len(words(question)) for question, text in text_pairs]


class BestSentence(SimpleChatModel):
    """Stands in for `ChatOpenAI`: answers with the sentence of its prompt that shares most words with the question."""

    @property
    def _llm_type(self) -> str:
        return "best-sentence"

    def _call(self, messages: list[BaseMessage], stop: list[str] | None = None, *args: Any, **kwargs: Any) -> str:
        sentences = re.split(r"(?<=[.!?])\s+|\n+", messages[0].text.removeprefix("Answer from: "))
        return max(sentences, key=lambda sentence: len(words(sentence) & words(messages[-1].text)))


def before(documents: list[Document]) -> Chain:
    """Three models; the last one reads the documents as text."""
    store = FAISS.from_documents(documents, WordEmbeddings())
    retriever = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=WordOverlap(), top_n=5),
        base_retriever=store.as_retriever(search_kwargs={"k": 20}),
    )
    chain: Chain = create_retrieval_chain(retriever, create_stuff_documents_chain(BestSentence(), PROMPT))
    return chain


def after(documents: list[Document], engine: ClaraEngine) -> Chain:
    """One model, which reads memory tokens. The prompt and the rest of the chain stay."""
    retriever = ClaraVectorStore.from_documents(documents, engine=engine).as_retriever(search_kwargs={"k": 5})
    reading = create_clara_documents_chain(ChatClara(engine=engine, max_tokens=32), PROMPT)
    chain: Chain = create_retrieval_chain(retriever, reading)
    return chain


def main(model: str = "pocket") -> list[str]:
    """Ask both chains; returns the answers of the second."""
    engine = ClaraEngine.from_pretrained(model)
    passages = [part for file in read_folder(DATA)[0] for part in cut_passages(file, engine.tokenizer.windows)]
    documents = [Document(part.text, metadata={"source": part.file}) for part in passages]
    chains = {"before": before(documents), "after": after(documents, engine)}
    answers = []
    for question in QUESTIONS:
        print(f"\n{question}")
        for name, chain in chains.items():
            result = chain.invoke({"input": question})
            print(f"  {name:7}{result['answer']}  [{result['context'][0].metadata['source']}]")
        answers.append(result["answer"])
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:2])
