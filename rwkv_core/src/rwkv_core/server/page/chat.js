// The chat page. A conversation is a tree: an edited message or another answer adds a branch beside
// the earlier one. The server caches the states of prefixes, so a branch needs little prefill.

const $ = (id) => document.getElementById(id);
let lastId = 0;
const newNode = (parent, role, text) => {
  const node = { id: ++lastId, parent, role, text, thought: "", facts: "", error: "", children: [], chosen: 0 };
  if (parent) {
    parent.chosen = parent.children.length;
    parent.children.push(node);
  }
  return node;
};
let root = newNode(null, "root", "");
let running = null; // the AbortController of the answer that is being generated

/** Return the messages of the branch that is shown, in order. */
function shown() {
  const path = [];
  for (let node = root.children[root.chosen]; node; node = node.children[node.chosen]) path.push(node);
  return path;
}

function say(text, isWrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", isWrong);
}

function button(label, action, { disabled = false } = {}) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.disabled = disabled;
  made.addEventListener("click", action);
  return made;
}

function part(kind, name, text) {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

/** Draw all messages. `refresh` updates only the message that is being generated. */
function draw() {
  const elements = shown().map((node) => {
    const article = document.createElement("article");
    article.className = node.role;
    article.id = `message-${node.id}`;
    article.append(
      part("h2", "", node.role === "user" ? "You" : "Model"),
      part("div", "thought", node.thought),
      part("div", "text", node.text),
      part("div", "wrong", node.error),
      part("div", "facts", node.facts),
      tools(node),
    );
    return article;
  });
  $("messages").replaceChildren(...elements);
  $("messages").scrollTop = $("messages").scrollHeight;
  $("send").hidden = $("new").disabled = running !== null;
  $("stop").hidden = running === null;
}

function tools(node) {
  const made = part("div", "tools", "");
  const { children } = node.parent;
  const place = children.indexOf(node);
  const disabled = running !== null;
  if (children.length > 1) {
    const go = (to, label) => () => {
      node.parent.chosen = to;
      draw();
      say(`Branch ${to + 1} of ${children.length}`);
      focusTool(children[to], label);
    };
    const step = (sign, to, label) => {
      const made = button(sign, go(to, label), { disabled: disabled || !children[to] });
      made.setAttribute("aria-label", label);
      return made;
    };
    const before = step("‹", place - 1, "Earlier branch");
    const after = step("›", place + 1, "Later branch");
    made.append(before, `${place + 1} of ${children.length}`, after);
  }
  if (node.role === "user") made.append(button("Edit", () => edit(node), { disabled }));
  else made.append(button("Regenerate", () => answer(node.parent), { disabled }));
  return made;
}

/** Focus a button of a message, or the next best one, after `draw` has replaced the one in use. */
function focusTool(node, label) {
  const buttons = [...$(`message-${node.id}`).querySelectorAll(".tools button:enabled")];
  const named = (one) => label === (one.getAttribute("aria-label") ?? one.textContent);
  (buttons.find(named) ?? buttons[0]).focus();
}

/** Focus the input if the element that had the focus is gone. */
function keepFocus() {
  if (document.activeElement === document.body) $("input").focus();
}

/** Replace a message by a text area. Sending the changed message adds a branch. */
function edit(node) {
  const article = $(`message-${node.id}`);
  const area = document.createElement("textarea");
  area.value = node.text;
  area.setAttribute("aria-label", "Edit the message");
  const save = () => area.value.trim() && answer(newNode(node.parent, "user", area.value.trim()));
  const cancel = () => {
    draw();
    focusTool(node, "Edit");
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  });
  const buttons = part("div", "tools", "");
  buttons.append(button("Send", save), button("Cancel", cancel));
  article.querySelector(".text").replaceWith(area);
  article.querySelector(".tools").replaceWith(buttons);
  area.focus();
}

function refresh(node) {
  const article = $(`message-${node.id}`);
  const box = $("messages");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  for (const name of ["thought", "text"]) article.querySelector(`.${name}`).textContent = node[name];
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

function headers() {
  const key = $("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Return the server's error message. */
async function mistake(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) $("settings").open = true;
  return body.error?.message ?? `The server answered ${response.status}.`;
}

/** Return the messages from the system prompt to `node`. */
function conversation(node) {
  const messages = [];
  for (let one = node; one !== root; one = one.parent) {
    messages.unshift({ role: one.role, content: one.text });
  }
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

/** Yield the JSON objects of a stream of events. */
async function* events(response) {
  let held = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (held + value).split("\n\n");
    held = found.pop();
    for (const event of found) {
      const data = event.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length && data[0] !== "data: [DONE]") yield JSON.parse(data[0].slice(6));
    }
  }
}

/** Request an answer to a user's message, and show it as a new branch below. */
async function answer(question) {
  if (running) return;
  const node = newNode(question, "assistant", "");
  running = new AbortController();
  draw();
  keepFocus();
  say("Generating ...");
  let usage = null;
  let begin = 0;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      signal: running.signal,
      body: JSON.stringify({
        messages: conversation(question),
        temperature: $("temperature").valueAsNumber,
        top_p: $("top_p").valueAsNumber,
        max_tokens: $("max_tokens").valueAsNumber,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error(await mistake(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices[0]?.delta ?? {};
      if (!begin && (delta.content || delta.reasoning_content)) begin = performance.now();
      node.text += delta.content ?? "";
      node.thought += delta.reasoning_content ?? "";
      refresh(node);
    }
    say("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else {
      node.error = error.message;
      say(error.message, true);
    }
  }
  const seconds = (performance.now() - begin) / 1000;
  if (usage) {
    const rate = (Math.max(0, usage.completion_tokens - 1) / Math.max(seconds, 0.001)).toFixed(1);
    const { cached_tokens: cached } = usage.prompt_tokens_details;
    node.facts =
      `${usage.completion_tokens} tokens, ${rate} tokens/s; ` +
      `prompt: ${usage.prompt_tokens} tokens, ${cached} of them cached`;
  }
  running = null;
  draw();
  keepFocus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  answer(newNode(shown().at(-1) ?? root, "user", text));
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  root = newNode(null, "root", "");
  draw();
  say("A new chat.");
  $("input").focus();
});
async function greet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return say(await mistake(response), true);
    $("model").textContent = (await response.json()).data[0].id;
    say("Ready.");
  } catch {
    say("The server cannot be reached.", true);
  }
}
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  greet();
});
draw();
greet();
