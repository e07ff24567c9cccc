"""Replacement parts for existing pipelines: a cross encoder, and a translator of structured queries."""

from __future__ import annotations

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery

from clara_core.retrieval.filters import check_filter, matches
from langchain_clara import ClaraCrossEncoder, ClaraRerank, ClaraTranslator, ClaraVectorStore
from tests.langchain.data import bundled_or_tiny

QUESTION = "What does the mill at Orre grind?"
DOCUMENTS = [
    Document("The mill at Orre grinds oats.", id="mill", metadata={"town": "Orre", "year": 1811}),
    Document("Ferries to Skarn leave at noon.", id="ferry", metadata={"town": "Skarn", "year": 1954}),
    Document("The choir of Orre sings on Sundays.", id="choir", metadata={"town": "Orre", "year": 1990}),
]


# -- scores of pairs -------------------------------------------------------------------------------


def test_cross_encoder_scores_as_the_reranker_does():
    encoder, rerank = ClaraCrossEncoder(model=bundled_or_tiny()), ClaraRerank(model=bundled_or_tiny(), top_n=None)
    other = "When do ferries leave for Skarn?"
    pairs = [(question, document.page_content) for document in DOCUMENTS for question in (QUESTION, other)]
    scores = encoder.score(pairs)
    assert all(type(score) is float for score in scores)
    for question in (QUESTION, other):
        ranked = rerank.compress_documents(DOCUMENTS, question)
        expected = {document.page_content: document.metadata["relevance_score"] for document in ranked}
        found = {text: score for (asked, text), score in zip(pairs, scores, strict=True) if asked == question}
        assert found == pytest.approx(expected, abs=1e-5)
    assert encoder.score(iter(pairs)) == scores
    assert encoder.score([]) == []


async def test_cross_encoder_in_a_pipeline():
    base = RunnableLambda(lambda _question: DOCUMENTS)
    swapped = [
        CrossEncoderReranker(model=ClaraCrossEncoder(model=bundled_or_tiny()), top_n=2),
        ClaraRerank(model=bundled_or_tiny(), top_n=2),
    ]
    chains = [ContextualCompressionRetriever(base_compressor=one, base_retriever=base) for one in swapped]
    first, second = ([document.id for document in chain.invoke(QUESTION)] for chain in chains)
    assert first == second == [document.id for document in await chains[0].ainvoke(QUESTION)]


@pytest.mark.parametrize("pairs", ["text", 3, ["text"], [("q",)], [("q", Document("d"))], [("q", "d", "x")]])
def test_cross_encoder_wants_pairs_of_strings(pairs):
    with pytest.raises(TypeError, match="pair"):
        ClaraCrossEncoder(model=bundled_or_tiny()).score(pairs)


# -- structured queries ----------------------------------------------------------------------------


def compare(comparator, attribute, value):
    return Comparison(Comparator(comparator), attribute, value)


CONDITIONS = [
    (compare("eq", "town", "Orre"), ["choir", "mill"]),
    (compare("ne", "town", "Orre"), ["ferry"]),
    (compare("gt", "year", 1811), ["choir", "ferry"]),
    (compare("gte", "year", 1811), ["choir", "ferry", "mill"]),
    (compare("lt", "year", 1954), ["mill"]),
    (compare("lte", "year", 1954), ["ferry", "mill"]),
    (compare("in", "town", ["Orre", "Kell"]), ["choir", "mill"]),
    (compare("in", "town", "Orre"), ["choir", "mill"]),
    (compare("nin", "town", ("Orre",)), ["ferry"]),
    (compare("contain", "town", "kar"), ["ferry"]),
    (Operation(Operator.AND, [compare("eq", "town", "Orre"), compare("gt", "year", 1900)]), ["choir"]),
    (Operation(Operator.OR, [compare("eq", "town", "Skarn"), compare("lt", "year", 1900)]), ["ferry", "mill"]),
    (Operation(Operator.NOT, [compare("eq", "town", "Orre")]), ["ferry"]),
    (compare("eq", "town", {"$ne": "Orre"}), []),  # always a value, never an operator
]


@pytest.mark.parametrize("condition, expected", CONDITIONS)
async def test_structured_queries_as_filters(condition, expected):
    store = ClaraVectorStore.from_documents(DOCUMENTS, model=bundled_or_tiny())
    asked = RunnableLambda(lambda _given: StructuredQuery("mills", condition, 3))
    retriever = SelfQueryRetriever(
        query_constructor=asked, vectorstore=store, structured_query_translator=ClaraTranslator()
    )
    assert sorted(document.id for document in retriever.invoke(QUESTION)) == expected
    assert sorted(document.id for document in await retriever.ainvoke(QUESTION)) == expected


def test_a_structured_query_without_a_filter_and_with_a_limit():
    assert ClaraTranslator().visit_structured_query(StructuredQuery("mills", None, 2)) == ("mills", {})


def test_dates_of_structured_queries():
    """Dates in the format of LangChain's query parser."""
    date = compare("gte", "opened", {"date": "1907-05-01", "type": "date"})
    query = StructuredQuery("", Operation(Operator.NOT, [date]))
    condition = ClaraTranslator().visit_structured_query(query)[1]["filter"]
    check_filter(condition)
    assert matches(condition, {"opened": "1811-01-01"})
    assert not matches(condition, {"opened": "1907-05-01"})


@pytest.mark.parametrize(
    "condition",
    [
        compare("like", "town", "%re"),
        Operation(Operator.AND, []),
        Operation(Operator.NOT, [compare("eq", "a", 1), compare("eq", "b", 2)]),
    ],
)
def test_structured_queries_that_cannot_be_meant(condition):
    with pytest.raises(ValueError, match=r"(?i)like|cannot take"):
        ClaraTranslator().visit_structured_query(StructuredQuery("", condition))
