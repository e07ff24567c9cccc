"""Trees of phrases, read from the output of `parse`, and facts about verbs and nouns from WordNet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Node:
    """A phrase, or a word with its tag and its place in the sentence."""

    label: str
    start: int = 0
    end: int = 0
    tag: str = ""
    parts: list[Node] = field(default_factory=list)


def read_tree(text: str, tree: str) -> Node | None:
    """The tree of a sentence; None if its words are not those of the sentence."""
    stack, at, low = [Node("")], 0, text.lower()
    for token in re.findall(r"\(\w*|\)|[^\s()]+", tree):
        if token.startswith("("):
            node = Node(token[1:])
            stack[-1].parts.append(node)
            stack.append(node)
        elif token == ")":
            node = stack.pop()
            if not node.parts:
                return None
            node.start, node.end = node.parts[0].start, node.parts[-1].end
        else:
            found = re.fullmatch(r"(.+?)(?:\[.*\]|\{.*\})?(?:\.([a-z][\w-]*))?(?:\[.*\]|\{.*\})?", token)
            word, tag = (found[1], found[2] or "") if found else (token, "")
            start = low.find(word.lower(), at)
            if start < 0 or start > at + 1:
                return None
            at = start + len(word)
            stack[-1].parts.append(Node("", start, at, tag))
    return stack[0].parts[0] if stack[0].parts else None


def flat(parts: list[Node], text: str) -> list[Node]:
    """The phrases after a subject, in order: words, base noun phrases, prepositional phrases, clauses."""
    found: list[Node] = []
    for part in parts:
        inner = [p.label for p in part.parts]
        nested = part.label in ("NP", "PP") and inner[:1] in (["NP"], ["PP"]) and all(p == "PP" for p in inner[1:])
        if part.label in ("VP", "PRT") or (part.label == "" and part.parts) or nested:
            found += flat(part.parts, text)
        elif part.label == "NP" and any(p.label == "PP" for p in part.parts[1:]):
            at = next(i for i, p in enumerate(part.parts) if p.label == "PP" and i)
            found.append(Node("NP", part.start, part.parts[at - 1].end, "", part.parts[:at]))
            found += [x for p in part.parts[at:] for x in opened(p)]
        else:
            found += opened(part)
    glued: list[Node] = []
    for part in found:  # "a cup" + "of tea"
        if (
            part.label == "PP"
            and text[part.start : part.end].startswith("of ")
            and glued
            and glued[-1].label in ("NP", "PP")
        ):
            glued[-1] = Node(glued[-1].label, glued[-1].start, part.end, "", glued[-1].parts)
        else:
            glued.append(part)
    return glued


def opened(node: Node) -> list[Node]:
    """A prepositional phrase, followed by those that depend on its noun; any other phrase is returned unchanged."""
    if node.label != "PP":
        return [node]
    if node.parts[0].label == "PP":
        return [x for p in node.parts for x in opened(p)]
    inner = node.parts[-1]
    if inner.label == "NP" and len(inner.parts) > 1 and inner.parts[0].label == "NP" and inner.parts[1].label == "PP":
        head = Node("PP", node.start, inner.parts[0].end, "", [*node.parts[:-1], inner.parts[0]])
        return [head, *(x for p in inner.parts[1:] for x in opened(p))]
    return [node]


class WordNet:
    """The base form of verbs and the category of nouns, from WordNet."""

    def __init__(self, folder: Path) -> None:
        index = (folder / "index.verb").read_text().splitlines()
        self.verbs = {line.split()[0] for line in index if not line.startswith("  ")}
        self.irregular = dict(line.split()[:2] for line in (folder / "verb.exc").read_text().splitlines())
        files = {3: "tops", 4: "act", 5: "animal", 6: "artifact", 8: "body", 14: "group", 15: "location", 17: "object"}
        files |= {18: "person", 20: "plant", 27: "substance", 28: "time"}
        self.sorts: dict[str, str] = {}
        rows = {}
        for line in (folder / "data.noun").read_text().splitlines():
            if not line.startswith("  "):
                rows[line[:8]] = files.get(int(line[9:11]), "")
        for line in (folder / "index.noun").read_text().splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.sorts[fields[0]] = rows.get(next(f for f in fields[4:] if re.fullmatch(r"\d{8}", f)), "")

    def base(self, verb: str) -> str | None:
        """The base form of a verb ("go" for "went"); None if it is not known."""
        verb = verb.lower()
        if verb in self.irregular:
            return self.irregular[verb]
        for end, new in (
            ("ied", "y"),
            ("ies", "y"),
            ("ed", "e"),
            ("ed", ""),
            ("es", "e"),
            ("es", ""),
            ("s", ""),
            ("", ""),
        ):
            if verb.endswith(end):
                stem = verb[: len(verb) - len(end)] + new
                if stem in self.verbs:
                    return stem
                if end == "ed" and not new and len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in self.verbs:
                    return stem[:-1]
        return None

    def sort(self, phrase: str) -> str:
        """Category of the last word of a phrase, such as "person"; "" if it is not known."""
        last = re.findall(r"[\w-]+", phrase.lower().split(" of ")[0])[-1:] or [""]
        for word in (last[0], last[0].removesuffix("s"), last[0].removesuffix("es"), last[0].removesuffix("ies") + "y"):
            if word in self.sorts:
                return self.sorts[word]
        return ""
