// Requests of the page to its server: readiness, facts, and streamed answers. It does not touch the document.

/** A request that failed; `message` is shown to the user. */
export class Refusal extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const SAID = {
  401: "This server needs a key, and the one that was sent is not among its keys.",
  413: "That is more text than this server takes at once. Give it fewer documents.",
  504: "The answer took longer than this server allows.",
};

// Kept in memory only, until the page is closed.
let authorization = null;

/** Sends a key with every request, as a password, which may contain any characters. */
export function useKey(key) {
  const bytes = new TextEncoder().encode(`:${key}`);
  authorization = { Authorization: `Basic ${btoa(String.fromCharCode(...bytes))}` };
}

/** Whether the server accepts questions, and if not, why. */
export async function readiness() {
  const response = await request("health/ready");
  const { status } = await response.json();
  return { ready: response.ok, why: status };
}

/** The model and the stores of the server. */
export async function facts() {
  const response = await request("v1/clara/info");
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

/**
 * The events of an answer, in order; each is a chunk of OpenAI's chat completion.
 * Aborting the signal closes the connection, and the server stops writing.
 */
export async function* answer(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusalOf(response);
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data: ")) continue; // a comment that keeps the connection open, or the end of an event
    if (line === "data: [DONE]") return;
    const event = read(line.slice(6));
    if (event.error) throw new Refusal(event.error.message);
    yield event;
  }
  throw new Refusal("The connection ended before the answer did.");
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Refusal("The server sent what this page cannot read.");
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const whole = (kept + value).split("\n");
      kept = whole.pop();
      yield* whole;
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal("The connection ended before the answer did.");
  }
}

async function request(path, options = {}) {
  // Relative to the page, for proxies that serve it under a prefix; fetch refuses an address with a password.
  const url = new URL(path, document.baseURI);
  url.username = url.password = "";
  const headers = { ...options.headers, ...authorization };
  try {
    return await fetch(url, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Is it still running?");
  }
}

async function refusalOf(response) {
  const { status } = response;
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  let said = "";
  try {
    said = String((await response.json()).error.message);
  } catch {
    // A proxy answered with a body of its own.
  }
  let message = SAID[status] ?? (said || `The server answered with status ${status}.`);
  if (status === 503 && retryAfter) {
    message = `The server has too much to do, or is starting. Ask again in ${retryAfter} s.\n${said}`;
  } else if (status === 400) {
    message = `The server cannot answer this: ${said}`;
  }
  return new Refusal(message, { status, retryAfter });
}
