// The page: a question, the streamed answer, and its sources. Text is inserted as text nodes only.
import { answer, facts, readiness, Refusal, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);
const POLL = 2000; // ms between two requests to a server that is not ready
const SHOWN = 600; // characters from which a source is shortened
const AROUND = 240; // characters shown around a citation

const EXAMPLE = {
  question: "How high is the Eiffel Tower?",
  documents: [
    "The Eiffel Tower in Paris was built in 1889. It is 330 metres high.",
    "Tower Bridge in London was opened in 1894. It is 244 metres long.",
    "The ferry to Heron Island takes 12 minutes. A return ticket costs 6 euros.",
  ],
};

let running = null; // the AbortController of the answer that is being written
let looking = 0; // timer of the next request to the server

// --- the document ------------------------------------------------------------------------------------------

function element(tag, { text, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function refuse(message) {
  $("refusal").textContent = message ?? "";
  $("refusal").hidden = !message;
}

function show(state, told) {
  $("model").dataset.state = state;
  $("model").textContent = told;
}

/** An empty line begins the next document. */
function pasted() {
  return $("documents").value.split(/\n[^\S\n]*\n/).map((text) => text.trim()).filter(Boolean);
}

function refresh() {
  const own = $("origin").value === "";
  const count = pasted().length;
  $("documents").hidden = !own;
  $("example").hidden = !own || count > 0;
  $("count").textContent = own && count ? `${count} ${count === 1 ? "document" : "documents"}` : "";
}

function grow() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight + 2}px`;
}

// --- the server --------------------------------------------------------------------------------------------

async function connect() {
  clearTimeout(looking);
  try {
    const { ready, why } = await readiness();
    if (!ready) {
      show("waiting", why);
      looking = setTimeout(connect, POLL);
      return;
    }
    const { model, stores } = await facts();
    show("ready", model);
    const chosen = $("origin").value;
    const own = $("origin").options[0];
    $("origin").replaceChildren(...Object.keys(stores).map((name) => element("option", { text: `store ${name}`, value: name })), own);
    $("origin").value = chosen in stores ? chosen : $("origin").options[0].value;
    $("key-form").hidden = true;
    refresh();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    show("wrong", error.status === 401 ? "a key is needed" : "not reached");
    if (error.status === 401) askForKey();
    else looking = setTimeout(connect, POLL);
  }
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

// --- an answer ---------------------------------------------------------------------------------------------

async function ask() {
  const question = $("question").value.trim();
  const store = $("origin").value;
  const documents = store ? [] : pasted();
  refuse();
  if (!question) {
    refuse("Write a question first.");
    return $("question").focus();
  }
  if (!store && !documents.length) {
    refuse("Paste what is to be read first.");
    return $("documents").focus();
  }
  const body = { model: "clara", messages: [{ role: "user", content: question }], citations: true };
  Object.assign(body, store ? { retrieval: { store } } : { documents });
  begin(question);
  try {
    await write(answer(body, running.signal), documents);
  } catch (error) {
    if (error.name === "AbortError") {
      $("state").textContent = "Stopped.";
    } else if (error instanceof Refusal) {
      refuse(error.message);
      $("state").textContent = $("answer").textContent ? "The answer is not whole." : "";
      $("result").hidden = !$("answer").textContent;
      if (error.status === 401) askForKey();
      if (!error.status) connect();
    } else {
      throw error;
    }
  } finally {
    end();
  }
}

function begin(question) {
  running = new AbortController();
  swap("send", "stop");
  $("result").hidden = false;
  $("asked").textContent = question;
  $("answer").replaceChildren();
  $("answer").setAttribute("aria-busy", "true");
  $("state").textContent = "Reading …";
  $("sources-title").hidden = $("unused").hidden = true;
  $("sources").replaceChildren();
  $("unused-sources").replaceChildren();
}

function end() {
  running = null;
  swap("stop", "send");
  $("answer").setAttribute("aria-busy", "false");
}

/** Show one button in place of another; who had the focus there keeps it. */
function swap(from, to) {
  const focused = document.activeElement === $(from);
  $(to).hidden = false;
  $(from).hidden = true;
  if (focused) $(to).focus();
}

async function write(events, documents) {
  let sources = [];
  let evidence = {};
  let usage = null;
  for await (const event of events) {
    if (event.sources) sources = event.sources;
    usage = event.usage ?? usage;
    const [choice] = event.choices;
    if (!choice) continue;
    if (choice.delta.content) {
      $("answer").append(choice.delta.content);
      $("state").textContent = "Writing …";
    }
    if (choice.finish_reason) evidence = { ...event, reason: choice.finish_reason };
  }
  const read = sources.map((source) => ({ ...source, text: source.text ?? documents[source.index] }));
  cite($("answer").textContent, evidence.citations ?? []);
  list(read, evidence.citations ?? []);
  $("state").replaceChildren(...closing(usage, evidence, read.length));
}

/** Notes about an answer: first reasons to doubt it, then the number of tokens that were read. */
function closing(usage, { reason, citations = [] }, count) {
  const doubts = [];
  if (!$("answer").textContent) doubts.push("The answer is empty.");
  else if (!citations.length && count) doubts.push("Nothing that was read supports this answer.");
  if (citations.some(({ verbatim }) => !verbatim)) doubts.push("What is dotted does not stand in its source word for word.");
  if (reason === "length") doubts.push("It was cut: it may not be longer.");
  if (reason === "cancelled") doubts.push("The server ended before it was whole.");
  const { memory_tokens: memory, source_tokens: source, windows_left_out: left } = usage?.prompt_tokens_details ?? {};
  if (left) doubts.push(`There was no room for ${left} ${left === 1 ? "part" : "parts"} of long documents.`);
  const nodes = doubts.map((text) => element("span", { text: `${text} `, className: "doubt" }));
  return memory ? [...nodes, `${source} tokens of text were read as ${memory} memory tokens.`] : nodes;
}

// --- citations ---------------------------------------------------------------------------------------------

/** Cuts a text at the ends of spans; each part has its covering spans. Spans count code points, as in Python. */
function parts(text, spans) {
  const points = [...text];
  const ends = new Set([0, points.length, ...spans.flatMap(({ start, end }) => [start, end])]);
  const cuts = [...ends].filter((at) => at >= 0 && at <= points.length).sort((a, b) => a - b);
  return cuts.slice(0, -1).map((start, at) => ({
    text: points.slice(start, cuts[at + 1]).join(""),
    covering: spans.filter((span) => span.start <= start && cuts[at + 1] <= span.end),
    ending: spans.filter((span) => span.end === cuts[at + 1]),
  }));
}

/** Underlines the cited parts of the answer, each followed by the number of its source. */
function cite(text, citations) {
  const nodes = parts(text, citations).flatMap(({ text: part, covering, ending }) => {
    if (!covering.length) return [part];
    const free = covering.every(({ verbatim }) => !verbatim);
    const numbers = [...new Set(ending.map((citation) => citation.document))].sort((a, b) => a - b);
    return [
      element("span", { text: part, className: free ? "cited free" : "cited" }),
      ...numbers.map((number) => {
        const link = element("a", { text: String(number + 1), className: "number", href: `#source-${number + 1}` });
        link.setAttribute("aria-label", `Source ${number + 1}`);
        return link;
      }),
    ];
  });
  $("answer").replaceChildren(...nodes);
}

/** Lists the sources, the cited ones first. */
function list(sources, citations) {
  const items = sources.map((source, index) => {
    const own = citations.filter(({ document: cited }) => cited === index);
    return { cited: own.length > 0, item: sourceItem(source, index, own) };
  });
  const cited = items.filter((each) => each.cited).map((each) => each.item);
  const rest = items.filter((each) => !each.cited).map((each) => each.item);
  $("sources").replaceChildren(...cited);
  $("sources-title").hidden = !cited.length;
  $("unused-sources").replaceChildren(...rest);
  $("unused").hidden = !rest.length;
  $("unused").open = !cited.length;
  $("unused").firstElementChild.textContent = `${cited.length ? "Also read" : "Read"}: ${rest.length} ${rest.length === 1 ? "document" : "documents"}`;
}

function sourceItem(source, index, citations) {
  const named = element("div", { className: "facts" });
  const title = source.title ?? source.id;
  if (title !== undefined) named.append(element("span", { text: title, className: "title" }));
  if (source.store !== undefined) named.append(element("span", { text: `store ${source.store}` }));
  if (source.score !== undefined) named.append(element("span", { text: `score ${source.score.toFixed(3)}` }));
  if (citations.some(({ verbatim }) => !verbatim)) named.append(element("span", { text: "not word for word", className: "doubt" }));
  const spans = citations.map(({ text_start: start, text_end: end }) => ({ start, end }));
  const body = element("div", {}, named, ...excerpt(source.text ?? "", spans));
  const number = element("span", { text: String(index + 1), className: "of" });
  return element("li", { id: `source-${index + 1}` }, number, body);
}

/** A source text with its citations marked. A long text is shortened around them, with a button that shows all. */
function excerpt(text, spans) {
  const whole = parts(text, spans).map(({ text: part, covering }) => (covering.length ? element("mark", { text: part }) : part));
  const length = [...text].length;
  const shown = element("p", { className: "text" });
  if (length <= SHOWN) {
    shown.append(...whole);
    return [shown];
  }
  const first = Math.min(...spans.map(({ start }) => start), length);
  const from = spans.length ? Math.max(0, first - AROUND) : 0;
  const to = spans.length ? Math.min(length, Math.max(...spans.map(({ end }) => end)) + AROUND) : SHOWN;
  const moved = spans.map(({ start, end }) => ({ start: start - from, end: end - from }));
  const piece = [...text].slice(from, to).join("");
  const short = parts(piece, moved).map(({ text: part, covering }) => (covering.length ? element("mark", { text: part }) : part));
  shown.append(from ? "… " : "", ...short, to < length ? " …" : "");
  const more = element("button", { type: "button", text: "Show all of it", className: "plain" });
  more.addEventListener("click", () => {
    shown.replaceChildren(...whole);
    more.remove();
  });
  return [shown, more];
}

// --- events of the page ------------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) ask();
});
$("stop").addEventListener("click", () => running?.abort());
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("documents").addEventListener("input", refresh);
$("origin").addEventListener("change", refresh);
$("example").addEventListener("click", () => {
  $("question").value = EXAMPLE.question;
  $("documents").value = EXAMPLE.documents.join("\n\n");
  grow();
  refresh();
  $("question").focus();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  refuse();
  connect();
});

refresh();
connect();
