"use strict";
const $ = id => document.getElementById(id);
const el = (tag, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};
const DOUBTS = {
  far: "the meaning may differ",
  empty: "the translation has no words",
  repetition: "the translation repeats itself",
  language: "the translation is in another language",
};
const EXAMPLE = `Tom lives in a small village. He has a dog and two cats. Every morning he goes to the park \
with his dog. One day it was raining. The dog ran away, and Tom could not find him.

He asked the woman in the shop. She had not seen the dog. Then he asked the children at the school. A boy said \
that there was a dog near the river. Tom went to the river at 5 o'clock. There he saw his dog under a tree. The dog \
was wet, but he was happy. They went home together. Tom gave him some warm milk.`;
let languages = [], running = null, translation = [];

/* Requests */

async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  const found = await answer.json().catch(() => ({}));
  const wait = { 429: "The server is busy. Try again in a moment.", 401: "This server asks for its API key." };
  throw new Error(wait[answer.status] || found.error || `The server answered ${answer.status}.`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let buffer = "";;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const [, name, data] = part.match(/^event: (.*)\ndata: (.*)$/s);
      if (name === "error") throw new Error(JSON.parse(data).error);
      yield [name, JSON.parse(data)];
    }
  }
}

/* Choosing a language: a list that a search narrows */

function chooser(name, first) {
  const input = $(name), list = $(`${name}-list`);
  let chosen = first, at = 0, shown = [];
  const fold = text => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const all = () => (first.code === "auto" || first.code === "" ? [first] : []).concat(languages);
  const open = query => {
    const part = fold(query);
    shown = all().filter(one => fold(one.name).includes(part) || one.code.toLowerCase() === part)
      .sort((a, b) => fold(b.name).startsWith(part) - fold(a.name).startsWith(part));
    list.replaceChildren(...shown.map((one, n) => el("li",
      { id: `${name}-${n}`, role: "option", onmousedown: event => { event.preventDefault(); take(n); } },
      el("span", { textContent: one.name }), el("small", { textContent: one.code === "auto" ? "" : one.code }))));
    if (!shown.length) list.append(el("li", { className: "none", textContent: "No such language" }));
    list.hidden = false;
    input.ariaExpanded = "true";
    move(Math.max(0, query ? 0 : shown.findIndex(one => one.code === chosen.code)));
  };
  const move = n => {
    at = Math.min(Math.max(n, 0), shown.length - 1);
    [...list.children].forEach((item, i) => { item.ariaSelected = String(i === at); });
    if (at >= 0) {
      input.setAttribute("aria-activedescendant", `${name}-${at}`);
      list.children[at].scrollIntoView({ block: "nearest" });
    }
  };
  const close = () => {
    list.hidden = true;
    input.ariaExpanded = "false";
    input.removeAttribute("aria-activedescendant");
    input.value = chosen.name;
  };
  const take = n => {
    if (shown[n]) chosen = shown[n];
    close();
    try { localStorage.setItem(`lcm-${name}`, chosen.code); } catch { /* storage may be off */ }
  };
  input.onfocus = () => { input.select(); };
  input.onclick = () => open("");
  input.oninput = () => open(input.value);
  input.onblur = close;
  input.onkeydown = event => {
    const closed = list.hidden, steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (event.key in steps) {
      event.preventDefault();
      if (closed) open(""); else move(at + steps[event.key]);
    } else if (event.key === "Enter" && !closed) {
      event.preventDefault();
      take(at);
    } else if (event.key === "Escape" && !closed) {
      event.preventDefault();
      close();
    }
  };
  const ready = () => {
    let kept = null;
    try { kept = localStorage.getItem(`lcm-${name}`); } catch { /* storage may be off */ }
    chosen = all().find(one => one.code === kept) || chosen;
    close();
  };
  return { ready, get code() { return chosen.code; } };
}

const from = chooser("from", { code: "auto", name: "Automatic" });
const to = chooser("to", { code: "", name: "Unchanged" });
const named = code => (languages.find(one => one.code === code) || { name: code }).name;

/* Results */

function light(index, on) {
  document.querySelectorAll(`[data-index="${index}"]`).forEach(pair => pair.classList.toggle("lit", on));
}

function showSummary(found, code) {
  const key = Object.keys(found.summaries)[0];
  $("summary-list").lang = code;
  $("summary-list").dir = "auto";
  const shares = `${found.sentences.length} of ${found.total} sentences`;
  const how = found.method === "generated" ? `written by ${found.model}` : "chosen from the document";
  $("summary-note").textContent = `${shares}, ${how}. Choose one to see where it comes from.`;
  $("summary-list").replaceChildren(...found.sentences.map(one => {
    const sources = one.sources.map(source => source.index);
    const all = on => sources.forEach(index => light(index, on));
    const button = el("button", { type: "button", textContent: one.texts[key], title: "Show its source" });
    if (found.method !== "generated") button.dataset.source = sources[0];
    button.setAttribute("aria-describedby", sources.map(index => `source-${index}`).join(" "));
    Object.assign(button, {
      onmouseenter: () => all(true), onfocus: () => all(true),
      onmouseleave: () => all(false), onblur: () => all(false),
      onclick: () => document.querySelector(`[data-index="${sources[0]}"]`)
        ?.scrollIntoView({ block: "center" }),
    });
    return el("li", {}, button);
  }));
  $("summary").hidden = false;
}

function showSources(found, lang) {
  const { sentences, paragraphs } = found.document;
  $("pairs").replaceChildren(...sentences.map((text, n) => {
    const first = n && paragraphs[n] !== paragraphs[n - 1] ? " first" : "";
    const source = el("p", { id: `source-${n + 1}`, className: "source", textContent: text, lang, dir: "auto" });
    const pair = el("div", { className: `pair${first}` }, source);
    pair.dataset.index = n + 1;
    return pair;
  }));
  $("document").hidden = false;
}

function showTranslated(one, n, code, threshold) {
  const doubtful = Boolean(one.doubt || one.lost.length || one.similarity < threshold);
  const said = el(doubtful ? "mark" : "span", { className: doubtful ? "doubtful" : "", textContent: one.text });
  const line = el("p", { lang: code, dir: "auto" }, said);
  if (doubtful) {
    const why = [];
    if (one.doubt || !one.lost.length) why.push(DOUBTS[one.doubt || "far"]);
    if (one.lost.length) why.push(`missing: ${one.lost.join(", ")}`);
    line.append(el("small", { lang: "en", textContent: `Check this: ${why.join("; ")}` }));
  }
  $("pairs").children[n].append(line);
  // A quoted sentence reads as its translation below, which has been checked.
  const quoted = document.querySelector(`[data-source="${n + 1}"]`);
  if (quoted) {
    quoted.textContent = one.text;
    quoted.classList.toggle("doubtful", doubtful);
  }
  return doubtful ? 1 : 0;
}

async function read(signal) {
  const text = $("text").value, lang = from.code, target = to.code;
  step("Summarizing");
  const summary = await (await post("/summarize", {
    text, lang, to: target ? [target] : [], length: $("length").value, document: true,
  }, signal)).json();
  const own = languages.find(one => one.id === summary.lang) || {};
  showSources(summary, own.code);
  showSummary(summary, target || own.code);
  const alone = !target || target === own.code;
  $("document").classList.toggle("alone", alone);
  for (const id of ["copy", "doubts"]) $(id).hidden = alone;
  $("from-title").textContent = own.name || summary.lang;
  $("to-title").textContent = alone ? "" : named(target);
  $("doubts").textContent = "";
  if (alone) return `Summary of ${summary.total} sentences`;
  const answer = await post("/translate", {
    q: text, source: lang, target, format: "document", stream: true,
  }, signal);
  let done = 0, doubts = 0, about = {};
  for await (const [name, data] of events(answer)) {
    if (name === "document") about = data;
    for (const one of data.sentences || []) {
      doubts += showTranslated(one, done++, target, about.threshold);
      translation.push(one);
    }
    step(`Translating: ${done} of ${about.total} sentences`, done / about.total);
    $("doubts").textContent = `${doubts} of ${done} may be wrong`;
    $("doubts").className = doubts ? "doubtful" : "";
  }
  return `Translated ${done} sentences, ${doubts} of which may be wrong`;
}

function step(message, share) {
  $("progress").hidden = false;
  $("status").textContent = message;
  if (share === undefined) $("bar").removeAttribute("value"); else $("bar").value = share;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

async function start(event) {
  event.preventDefault();
  if (running) return;
  $("error").hidden = true;
  if (!$("text").value.trim()) {
    fail("There is no text yet: paste some, or open a file.");
    $("text").focus();
    return;
  }
  for (const id of ["empty", "summary", "document"]) $(id).hidden = true;
  translation = [];
  running = new AbortController();
  $("go").disabled = true;
  $("stop").hidden = false;
  $("live").textContent = "Working";
  try {
    $("live").textContent = await read(running.signal);
    $("summary").scrollIntoView({ block: "nearest" });
  } catch (error) {
    $("live").textContent = "";
    if (error.name === "TypeError") fail("The server cannot be reached. Is it still running?");
    else if (error.name !== "AbortError") fail(error.message[0].toUpperCase() + error.message.slice(1));
    if ($("document").hidden) $("empty").hidden = false;
  } finally {
    running = null;
    $("go").disabled = false;
    $("stop").hidden = $("progress").hidden = true;
  }
}

/* The document: typed, pasted, opened or dropped */

function count() {
  const words = ($("text").value.match(/\S+/g) || []).length;
  $("count").textContent = `${words.toLocaleString("en")} word${words === 1 ? "" : "s"}`;
}

async function open(file) {
  if (!file) return;
  const text = await file.text();
  if (text.includes("\0")) return fail(`${file.name} is not a text file.`);
  $("error").hidden = true;
  $("text").value = text;
  count();
}

function copy() {
  const lines = [...$("pairs").children].map((pair, n) =>
    (n && pair.classList.contains("first") ? "\n\n" : n ? " " : "") + (translation[n]?.text || ""));
  navigator.clipboard.writeText(lines.join("")).then(
    () => { $("live").textContent = $("copy").textContent = "Copied"; },
    () => fail("The browser does not allow copying."));
  setTimeout(() => { $("copy").textContent = "Copy the translation"; }, 2000);
}

$("form").onsubmit = start;
$("stop").onclick = () => running?.abort();
$("text").oninput = count;
$("text").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
};
$("file").onchange = () => { open($("file").files[0]); $("file").value = ""; };
$("example").onclick = () => {
  $("text").value = EXAMPLE;
  count();
  $("text").focus();
  $("text").setSelectionRange(0, 0);
  $("text").scrollTop = 0;
};
$("copy").onclick = copy;
const over = on => event => {
  event.preventDefault();
  $("drop").classList.toggle("over", on);
};
addEventListener("dragover", over(true));
addEventListener("dragleave", over(false));
addEventListener("drop", event => {
  over(false)(event);
  open(event.dataTransfer.files[0]);
});

async function setUp() {
  try {
    const answer = await fetch("/languages");
    if (!answer.ok) throw new Error((await answer.json()).error);
    languages = await answer.json();
  } catch (error) {
    fail(`${error.message[0].toUpperCase()}${error.message.slice(1)}. Trying again.`);
    return setTimeout(setUp, 2000);
  }
  $("error").hidden = true;
  from.ready();
  to.ready();
  const count = languages.length;
  $("about").textContent = `Summaries and translations in ${count} language${count === 1 ? "" : "s"}`;
  document.body.dataset.ready = "";
}
setUp();
