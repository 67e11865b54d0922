// The annotation page. What the server says is put on the page as text, never as HTML.
import { api, Refused } from "./api.js";
import { Viewer, colour } from "./viewer.js";

const SAVE_AFTER_MS = 1200; // after the last stroke
const LOOK_EVERY_MS = 5000; // at what others do
const SIGN_OF_LIFE_S = 60; // while a case is in front and nothing is drawn
const VIEWS = ["3", "0", "1", "2", "4"];
const $ = (id) => document.getElementById(id);
// of this page as it was loaded: a second tab, also a duplicated one, has another one
const holder = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

let annotator = "";
let overview = null;
let shown = ""; // the states of the cases, as they are in the list
let open = null; // the case that is being drawn: { request, case, based_on, seconds, ... }
let seconds = 0; // of it, not sent to the server yet
let isChanged = false; // strokes that have not been saved yet
let saving = null; // the save under way
let saveTimer = 0;
let tool = "pen";
let value = 1;
const viewer = new Viewer(drawn);
globalThis.viewer = viewer; // for the console of the browser, and for tests

function say(text) {
  $("message-text").textContent = text;
  $("message").hidden = !text;
}

function cover(text, button = "", action = null) {
  $("cover").hidden = !text;
  $("cover-text").textContent = text;
  $("cover-button").hidden = !button;
  $("cover-button").textContent = button;
  $("cover-button").onclick = action;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- the list of cases

const IS_DONE = { submitted: "submitted", annotated: "annotated" };

function stateOf(unit) {
  const by = unit.annotator ? ` by ${unit.annotator}` : "";
  if (IS_DONE[unit.state]) return IS_DONE[unit.state] + by;
  if (open && open.case === unit.case) return "open here";
  if (unit.claimed) return unit.drawn_by === annotator ? "open on another page of yours" : `${unit.drawn_by} works on it`;
  if (unit.state === "refused") return `refused by the checks${by}`;
  if (unit.has_draft) return unit.drawn_by === annotator ? "your draft" : `draft by ${unit.drawn_by}`;
  return unit.has_proposal ? "with a proposal" : "open";
}

function showOverview() {
  const { units, request, run } = overview;
  const n = units.filter((unit) => IS_DONE[unit.state]).length;
  $("title").textContent = request ? `${run} · ${request}` : run;
  document.title = $("title").textContent;
  $("progress").max = Math.max(units.length, 1);
  $("progress").value = n;
  $("progress-text").textContent = request ? `${n} of ${units.length} done` : "";
  const states = JSON.stringify([units, open && open.case, annotator]);
  if (states === shown) return; // a row that is being clicked stays
  shown = states;
  const rows = units.map((unit) => {
    const button = element("button", "", "");
    button.type = "button";
    button.dataset.case = unit.case;
    button.title = unit.score === null ? unit.case : `${unit.case}, score ${unit.score.toPrecision(3)}`;
    if (open && open.case === unit.case && open.request === request) button.setAttribute("aria-current", "true");
    button.append(element("span", "order", unit.order), element("span", "case", unit.case));
    button.append(element("span", `state ${IS_DONE[unit.state] ? "done" : unit.state}`, stateOf(unit)));
    button.onclick = () => openCase(unit.case, unit);
    const row = document.createElement("li");
    row.append(button);
    return row;
  });
  $("cases").replaceChildren(...rows);
}

async function look() {
  try {
    const before = overview && overview.request;
    overview = await api.overview();
    showOverview();
    if (!open && annotator && overview.request && overview.request !== before) await next();
  } catch (error) {
    if (!overview) throw error;
    $("saved").textContent = "the server does not answer";
    $("saved").className = "unsaved";
  }
}

// ---- opening a case

function unitOf(caseId) {
  return overview.units.find((unit) => unit.case === caseId);
}

async function next() {
  overview = await api.overview();
  if (!overview.request) return cover("The run has not asked for anything yet. This page looks again by itself.");
  const found = await api.next(overview.request, annotator, holder);
  if (found.case) return openCase(found.case);
  open = null;
  showOverview();
  const left = overview.units.filter((unit) => !IS_DONE[unit.state]).length;
  cover(left
    ? `Others work on the ${left} case(s) that are left.`
    : "All is annotated. The run takes the labels in when it is resumed, or by itself with oracle.wait=true; what it asks for next appears here.",
  left ? "Look again" : "", left ? attempt(next) : null);
}

function attempt(work) {
  return async (...args) => {
    try {
      await work(...args);
    } catch (error) {
      say(error.message);
    }
  };
}

const openCase = attempt(async (caseId, unit = null) => {
  if (open && open.case === caseId && open.request === overview.request) return;
  if (!(await save())) return;
  const request = overview.request;
  const takeOver = Boolean(unit && unit.claimed && unit.drawn_by === annotator);
  if (takeOver && !confirm(`${caseId} is open on another page of yours. Continue here instead?`)) return;
  const opened = await api.open(request, caseId, annotator, holder, takeOver);
  say("");
  $("submit").disabled = $("undo").disabled = true;
  open = null;
  cover(`Loading ${caseId} …`);
  const known = unitOf(caseId);
  const base = { request, case: caseId };
  $("channel").value = "0";
  const drawing = api.drawing(request, caseId);
  await viewer.load(api.imageUrl(request, caseId, 0), await drawing, known.has_uncertainty ? api.uncertaintyUrl(request, caseId) : "");
  open = { ...base, ...opened };
  seconds = 0;
  isChanged = false;
  $("uncertainty-label").hidden = !known.has_uncertainty;
  applyTool();
  showWindow();
  viewer.setDrawingOpacity(Number($("drawing-opacity").value));
  viewer.setUncertainty(Number($("uncertainty-opacity").value));
  $("submit").disabled = false;
  cover("");
  $("canvas").focus();
  showClock();
  $("saved").className = "";
  $("saved").textContent = { draft: "continues a draft", label: "continues the submitted label", proposal: "begins with the proposal", nothing: "" }[opened.begins_with];
  document.body.dataset.open = caseId;
  await look();
});

// ---- saving

function drawn() {
  if (!open) return;
  isChanged = true;
  $("saved").textContent = "not saved yet";
  $("saved").className = "unsaved";
  $("undo").disabled = !viewer.canUndo;
  clearTimeout(saveTimer);
  saveTimer = setTimeout(save, SAVE_AFTER_MS);
}

// Returns whether nothing is left to be saved.
async function save() {
  if (saving) await saving;
  if (!open || !isChanged) return true;
  clearTimeout(saveTimer);
  const mine = open, counted = seconds;
  isChanged = false;
  seconds = 0;
  saving = (async () => {
    try {
      await api.draft(mine.request, mine.case, holder, counted, await viewer.drawing());
      mine.seconds += counted;
      if (!isChanged) {
        $("saved").textContent = `draft saved ${new Date().toTimeString().slice(0, 5)}`;
        $("saved").className = "";
      }
      return true;
    } catch (error) {
      isChanged = true;
      seconds += counted;
      $("saved").textContent = "not saved";
      $("saved").className = "unsaved";
      say(error instanceof Refused ? error.message : "The server does not answer. Your drawing stays on this page and is saved once it does: start alseg.annotate again, and leave this page open.");
      clearTimeout(saveTimer);
      if (!(error instanceof Refused)) saveTimer = setTimeout(async () => { if (await save()) say(""); }, 3000);
      return false;
    }
  })();
  const done = await saving;
  saving = null;
  return done;
}

// ---- the clock: while a case is open and the page is in front

function showClock() {
  const minutes = open ? (open.seconds + seconds) / 60 : 0;
  $("clock").textContent = open ? `${minutes.toFixed(1)} min` : "";
}

let last = performance.now();
setInterval(async () => {
  const now = performance.now(), elapsed = Math.min((now - last) / 1000, 5); // a computer may have slept
  last = now;
  if (!open || document.visibilityState !== "visible" || !document.hasFocus()) return;
  seconds += elapsed;
  showClock();
  if (seconds > SIGN_OF_LIFE_S && !isChanged && !saving) {
    const counted = seconds, mine = open;
    seconds = 0;
    try {
      await api.draft(mine.request, mine.case, holder, counted, new Uint8Array());
      mine.seconds += counted;
    } catch (error) {
      seconds += counted;
      if (error instanceof Refused) say(error.message);
    }
  }
}, 1000);

// ---- submitting

function fillDialog() {
  const counts = viewer.counts();
  const ml = open.spacing_mm.reduce((a, b) => a * b, 1) / 1000;
  const rows = overview.palette.filter((entry) => entry.value > 0).map((entry) => {
    const row = document.createElement("tr");
    const n = counts[entry.value];
    row.append(element("td", "", entry.name), element("td", "", n.toLocaleString("en")), element("td", "", (n * ml).toFixed(2)));
    return row;
  });
  $("submit-table").tBodies[0].replaceChildren(...rows);
  $("submit-title").textContent = `Submit ${open.case}?`;
  $("submit-ok").textContent = "Submit";
  $("submit-note").className = "";
  $("submit-note").textContent = `By ${annotator}, in ${((open.seconds + seconds) / 60).toFixed(1)} minutes.`;
  if (open.based_on) $("submit-note").textContent += " It takes the place of the label that has been submitted before.";
}

function asked(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}

const submit = attempt(async () => {
  if (!open || $("submit").disabled || document.querySelector("dialog[open]")) return;
  fillDialog();
  let confirmed = false;
  while (await asked($("submit-dialog"))) {
    await save();
    const counted = seconds;
    try {
      await api.submit(open.request, open.case, holder, counted, open.based_on, confirmed, await viewer.drawing());
      open = null;
      isChanged = false;
      delete document.body.dataset.open;
      $("saved").textContent = "";
      return await next();
    } catch (error) {
      if (!error.confirm) throw error;
      confirmed = true;
      $("submit-note").textContent = error.confirm;
      $("submit-note").className = "confirm";
      $("submit-ok").textContent = "It is right: submit";
    }
  }
});

// ---- tools

function applyTool() {
  viewer.setTool(tool, value, Number($("size").value));
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  for (const button of document.querySelectorAll("[data-value]")) button.setAttribute("aria-pressed", String(Number(button.dataset.value) === value));
  $("size-text").textContent = $("size").value;
}

function choose(newTool) {
  tool = newTool;
  applyTool();
}

function chooseClass(newValue) {
  value = newValue;
  if (tool === "look" || tool === "erase") tool = "pen";
  applyTool();
}

function showPalette() {
  const entries = overview.palette.filter((entry) => entry.value > 0);
  viewer.setPalette(overview.palette);
  $("palette").replaceChildren(...entries.map((entry, index) => {
    const button = element("button", "", "");
    button.type = "button";
    button.dataset.value = entry.value;
    button.onclick = () => chooseClass(entry.value);
    const swatch = element("span", "swatch", "");
    swatch.style.color = `rgb(${colour(entry.value).join(" ")})`;
    if (index < 9) button.append(element("kbd", "", index + 1));
    button.append(swatch, element("span", "", entry.name));
    return button;
  }));
  value = entries.length ? entries[0].value : 0;
  $("channel").replaceChildren(...overview.channels.map((name, index) => {
    const option = element("option", "", name);
    option.value = index;
    return option;
  }));
  $("channel-label").hidden = overview.channels.length < 2;
}

function showWindow() {
  const [low, high] = viewer.window();
  $("low").value = Number(low.toPrecision(5));
  $("high").value = Number(high.toPrecision(5));
}

function undo() {
  if (open && viewer.canUndo) viewer.undo();
}

function resize(by) {
  $("size").value = Number($("size").value) + by;
  applyTool();
}

function toggle(id, apply) {
  const slider = $(id);
  slider.dataset.before = Number(slider.value) ? slider.value : slider.dataset.before || "0.6";
  slider.value = Number(slider.value) ? 0 : slider.dataset.before;
  apply(Number(slider.value));
}

function setView(view) {
  $("view").value = view;
  viewer.setView(Number(view));
}

const KEYS = {
  n: () => choose("look"), b: () => choose("pen"), f: () => choose("fill"), e: () => choose("erase"),
  z: undo, "[": () => resize(-2), "]": () => resize(2),
  " ": () => toggle("drawing-opacity", (v) => viewer.setDrawingOpacity(v)),
  u: () => toggle("uncertainty-opacity", (v) => viewer.setUncertainty(v)),
  v: () => setView(VIEWS[(VIEWS.indexOf($("view").value) + 1) % VIEWS.length]),
  ArrowUp: () => viewer.slice(1), ArrowDown: () => viewer.slice(-1),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, dialog *") || document.querySelector("dialog[open]");
  if (typing || event.altKey || !open) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() !== "z") return;
  if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (event.target.matches("button") && event.key === " ") return;
  const entry = /^[1-9]$/.test(event.key) && document.querySelectorAll("[data-value]")[Number(event.key) - 1];
  const action = entry ? () => entry.click() : KEYS[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});

function wire() {
  for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => choose(button.dataset.tool);
  $("size").oninput = applyTool;
  $("undo").onclick = undo;
  $("submit").onclick = submit;
  $("view").onchange = () => setView($("view").value);
  $("channel").onchange = attempt(async () => {
    if (!open) return;
    await viewer.setImage(api.imageUrl(open.request, open.case, $("channel").value));
    showWindow();
  });
  $("drawing-opacity").oninput = () => viewer.setDrawingOpacity(Number($("drawing-opacity").value));
  $("uncertainty-opacity").oninput = () => viewer.setUncertainty(Number($("uncertainty-opacity").value));
  for (const id of ["low", "high"]) $(id).onchange = () => viewer.setWindow(Number($("low").value), Number($("high").value));
  viewer.onWindow = showWindow;
  $("message-close").onclick = () => say("");
  $("name-button").onclick = attempt(async () => {
    const before = annotator;
    await askName();
    if (annotator === before) return;
    if (await save()) location.reload(); // claims are of the one who has opened them
  });
  addEventListener("beforeunload", (event) => { if (isChanged) event.preventDefault(); });
  addEventListener("pagehide", () => { if (open) api.release(open.request, holder); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

async function askName() {
  $("name").value = annotator;
  do await asked($("name-dialog")); while (!$("name").value.trim());
  annotator = $("name").value.trim();
  sessionStorage.setItem("annotator", annotator);
  localStorage.setItem("annotator", annotator);
  $("name-button").textContent = annotator;
}

async function main() {
  wire();
  overview = await api.overview();
  showPalette();
  showOverview();
  await viewer.attach($("canvas"));
  applyTool();
  annotator = sessionStorage.getItem("annotator") || "";
  if (!annotator) {
    annotator = localStorage.getItem("annotator") || "";
    await askName();
  }
  $("name-button").textContent = annotator;
  await next();
  setInterval(look, LOOK_EVERY_MS);
}

main().catch((error) => cover(error.message));
