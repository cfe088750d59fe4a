"use strict";

const of = (id) => document.getElementById(id);
const seconds = (from) => ((performance.now() - from) / 1000).toFixed(2) + " s";

function say(id, text, isError = false) {
  of(id).textContent = text;
  of(id).classList.toggle("error", isError);
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, name]) => new Option(name, value)));
  if (options.some(([value]) => value === before)) select.value = before;
}

async function asked(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (of("key").value) headers.Authorization = "Bearer " + of("key").value;
  const answer = await fetch(path, body && { method: "POST", headers, body: JSON.stringify(body), signal });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error((error && (error.message || error)) || "The server answered " + answer.status);
}

// ---- translation

let languages = [];
let limit = Infinity;
let running = null;
let pause = 0;

function showTargets() {
  const source = of("source").value;
  const known = languages.filter((one) => (source === "auto" ? one.targets.length : one.code === source));
  const codes = new Set(known.flatMap((one) => one.targets));
  fill(of("target"), languages.filter((one) => codes.has(one.code)).map((one) => [one.code, one.name]));
  const back = languages.find((one) => one.code === of("target").value);
  of("swap").disabled = !(back && back.targets.includes(source));
}

function count() {
  const length = [...of("text").value].length;
  say("count", length + " of " + limit + " characters", length > limit);
}

async function translate() {
  clearTimeout(pause);
  if (running) running.abort();
  const q = of("text").value;
  of("others").hidden = of("alignment").hidden = true;
  if (!q.trim()) {
    of("result").textContent = "";
    say("state", "");
    return;
  }
  const mine = (running = new AbortController());
  const began = performance.now();
  say("state", "Translating …");
  try {
    const body = { q, source: of("source").value, target: of("target").value };
    if (of("html").checked) body.format = "html";
    if (+of("alternatives").value) body.alternatives = +of("alternatives").value;
    if (of("align").checked) body.alignments = true;
    const answer = await (await asked("translate", body, mine.signal)).json();
    const found = answer.detectedLanguage;
    const name = found && (languages.find((one) => one.code === found.language) || { name: found.language }).name;
    of("result").textContent = answer.translatedText;
    say("state", seconds(began) + (found ? ", from " + name : ""));
    const others = answer.alternatives || [];
    of("other-list").replaceChildren(...others.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
    of("others").hidden = !others.length;
    if (body.alignments) {
      showAlignment(answer.alignments, { section: of("alignment"), links: of("links"), sentences: of("sentences") });
    }
  } catch (error) {
    if (mine.signal.aborted) return;
    of("result").textContent = "";
    say("state", error.message, true);
  } finally {
    if (running === mine) running = null;
  }
}

function later() {
  clearTimeout(pause);
  pause = setTimeout(translate, 600);
}

function swap() {
  const { value } = of("source");
  of("source").value = of("target").value;
  showTargets();
  of("target").value = value;
  showTargets();
  if (of("result").textContent) of("text").value = of("result").textContent;
  count();
  translate();
}

async function startTranslation(settings) {
  languages = await (await asked("languages")).json();
  const sources = languages.filter((one) => one.targets.length);
  const options = sources.map((one) => [one.code, one.name]);
  if (sources.length > 1 && settings.detection) options.push(["auto", "Detect language"]);
  fill(of("source"), options);
  showTargets();
  limit = settings.charLimit;
  count();
  of("translation").addEventListener("submit", (event) => (event.preventDefault(), translate()));
  of("text").addEventListener("input", () => (count(), later()));
  of("source").addEventListener("change", () => (showTargets(), translate()));
  for (const id of ["target", "alternatives", "align", "html"]) of(id).addEventListener("change", translate);
  of("swap").addEventListener("click", swap);
  of("translation").hidden = false;
  of("text").focus();
}

// ---- text from a prompt

async function write() {
  const stopper = new AbortController();
  const began = performance.now();
  of("stop").onclick = () => stopper.abort();
  of("stop").disabled = false;
  of("write").disabled = true;
  of("written").textContent = of("prompt").value;
  say("written-state", "Writing …");
  try {
    const body = { model: of("model").value, prompt: of("prompt").value, max_tokens: +of("tokens").value,
      temperature: +of("temperature").value, stream: true };
    const reader = (await asked("v1/completions", body, stopper.signal)).body
      .pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (held + part.value).split("\n\n");
      held = events.pop();
      for (const event of events.filter((one) => one !== "data: [DONE]")) {
        const { choices, error } = JSON.parse(event.slice(6));
        if (error) throw new Error(error.message);
        of("written").textContent += choices[0].text;
      }
    }
    say("written-state", seconds(began));
  } catch (error) {
    const stopped = stopper.signal.aborted;
    say("written-state", stopped ? "Stopped after " + seconds(began) : error.message, !stopped);
  } finally {
    of("write").disabled = false;
    of("stop").disabled = true;
  }
}

async function startCompletion(models) {
  fill(of("model"), models.map((one) => [one, one]));
  of("completion").addEventListener("submit", (event) => (event.preventDefault(), write()));
  of("completion").hidden = false;
}

// ---- both

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});

(async () => {
  const settings = await (await asked("frontend/settings")).json();
  of("key-row").hidden = !settings.keyRequired;
  if (settings.pairs) await startTranslation(settings);
  if (settings.models.length) await startCompletion(settings.models);
  document.body.dataset.ready = "yes";
})().catch((error) => {
  document.querySelector("main").append(Object.assign(document.createElement("p"),
    { className: "error", textContent: "The server cannot be reached: " + error.message }));
});
