// The annotation page. What the server says is put on the page as text, never as HTML.
import { api, Refused } from "./api.js";
import { $, View, asked, askName, attempt, cover, element, knownName, onKeys, row, say, showPalette } from "./common.js";
import { Viewer } from "./viewer.js";

const SAVE_AFTER_MS = 1200; // after the last stroke
const LOOK_EVERY_MS = 5000; // at what others do
const SILENT = "the server does not answer";
const IDLE_AFTER_MS = 3 * 60 * 1000; // without mouse or key: whoever annotates is not there
const SIGN_OF_LIFE_S = 60; // while a case is in front and nothing is drawn
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
const view = new View(viewer, (channel) => (open ? api.imageUrl(open.request, open.case, channel) : ""));
globalThis.viewer = viewer; // for the console of the browser, and for tests

// ---- the list of cases

const IS_DONE = { submitted: "submitted", annotated: "annotated" };

function isOpen(unit) {
  return Boolean(open) && open.case === unit.case && open.request === unit.request;
}

function wordsOf(unit) {
  const from = unit.request === overview.request ? "" : ` from ${unit.request}`;
  return `returned${from} by ${unit.reviewer}${unit.comment && ": "}${unit.comment}`;
}

function stateOf(unit) {
  const by = unit.annotator ? ` by ${unit.annotator}` : "";
  if (IS_DONE[unit.state]) return IS_DONE[unit.state] + by;
  if (isOpen(unit)) return "open here";
  if (unit.claimed) return unit.drawn_by === annotator ? "open on another page of yours" : `${unit.drawn_by} works on it`;
  if (unit.state === "returned") return wordsOf(unit);
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
  // those that come back from earlier requests have numbers behind the newest one's
  const rows = units.map((unit, index) =>
    row({ ...unit, order: index + 1 }, isOpen(unit), stateOf(unit), IS_DONE[unit.state] ? "done" : unit.state, () => openCase(unit)));
  $("cases").replaceChildren(...rows);
}

async function look() {
  try {
    const before = overview && overview.request;
    overview = await api.overview();
    if ($("saved").textContent === SILENT) { // it answers again
      $("saved").textContent = isChanged ? "not saved yet" : "";
      $("saved").className = isChanged ? "unsaved" : "";
    }
    const mine = overview.units.find(isOpen);
    if (mine && mine.claimed && mine.holder !== holder) leaveTo(mine);
    showOverview();
    const isReturned = overview.units.some((unit) => unit.state === "returned" && !unit.claimed);
    if (!open && annotator && overview.request && (overview.request !== before || isReturned)) await next();
  } catch (error) {
    if (!overview) throw error;
    $("saved").textContent = SILENT;
    $("saved").className = "unsaved";
  }
}

// ---- opening a case

function close() {
  clearTimeout(saveTimer);
  open = null;
  isChanged = false;
  delete document.body.dataset.open;
  $("saved").textContent = $("clock").textContent = "";
  $("submit").disabled = $("undo").disabled = $("clear").disabled = true;
}

// Another page has taken the case over: nothing of it can be saved or submitted here.
function leaveTo(unit) {
  const lost = isChanged ? " What was drawn here since is not kept." : "";
  const where = unit.drawn_by === annotator ? "another page of yours" : `a page of ${unit.drawn_by}`;
  close();
  $("submit-dialog").close();
  cover(`${unit.case} has been opened on ${where}, and continues there.${lost}`, "Next case", attempt(next));
}

async function next() {
  overview = await api.overview();
  if (!overview.request) return cover("The run has not asked for anything yet. This page looks again by itself.");
  // what the newest request asks for, then what reviewers have returned of those before it
  for (const request of new Set([overview.request, ...overview.units.map((unit) => unit.request)])) {
    const found = await api.next(request, annotator, holder);
    if (!found.case) continue;
    overview = await api.overview();
    return openCase(overview.units.find((unit) => unit.case === found.case && unit.request === request));
  }
  close();
  showOverview();
  const left = overview.units.filter((unit) => !IS_DONE[unit.state]).length;
  cover(left
    ? "The cases that are left are open on other pages: the list says whose."
    : "All is annotated. The run takes the labels in when it is resumed, or by itself with oracle.wait=true; what it asks for next appears here.",
  left ? "Look again" : "", left ? attempt(next) : null);
}

const openCase = attempt(async (unit) => {
  if (isOpen(unit)) return;
  if (!(await save())) return;
  const { request, case: caseId } = unit;
  const takeOver = unit.claimed && unit.holder !== holder && unit.drawn_by === annotator;
  if (takeOver && !confirm(`${caseId} is open on another page of yours. Continue here instead?`)) return;
  const opened = await api.open(request, caseId, annotator, holder, takeOver);
  say("");
  close();
  cover(`Loading ${caseId} …`);
  $("channel").value = "0";
  const drawing = api.drawing(request, caseId);
  await viewer.load(api.imageUrl(request, caseId, 0), await drawing, unit.has_uncertainty ? api.uncertaintyUrl(request, caseId) : "");
  open = { request, case: caseId, ...opened };
  seconds = 0;
  isChanged = false;
  applyTool();
  view.begin(unit.has_uncertainty);
  $("submit").disabled = $("clear").disabled = false;
  cover("");
  if (unit.state === "returned") say(wordsOf(unit));
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
      if (error instanceof Refused) look(); // another page may have the case
      else saveTimer = setTimeout(async () => { if (await save()) say(""); }, 3000);
      return false;
    }
  })();
  const done = await saving;
  saving = null;
  return done;
}

// ---- the clock: while a case is open, the page in front and somebody at it

let active = performance.now();
for (const kind of ["pointermove", "pointerdown", "keydown", "wheel"]) {
  addEventListener(kind, () => { active = performance.now(); }, { capture: true, passive: true });
}

function showClock() {
  const minutes = open ? (open.seconds + seconds) / 60 : 0;
  $("clock").textContent = open ? `${minutes.toFixed(1)} min` : "";
}

let last = performance.now();
setInterval(async () => {
  const now = performance.now(), elapsed = Math.min((now - last) / 1000, 5); // a computer may have slept
  last = now;
  const isInFront = document.visibilityState === "visible" && document.hasFocus();
  if (!open || !isInFront || now - active > IDLE_AFTER_MS) return;
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

const submit = attempt(async () => {
  if (!open || $("submit").disabled || document.querySelector("dialog[open]")) return;
  fillDialog();
  let confirmed = false;
  while (await asked($("submit-dialog"))) {
    await save();
    if (!open) return; // taken over meanwhile
    const counted = seconds;
    try {
      await api.submit(open.request, open.case, holder, counted, open.based_on, confirmed, await viewer.drawing());
      close();
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

function choices() {
  const entries = showPalette(overview, viewer, (entry, index) => {
    const button = element("button", "", "");
    button.type = "button";
    button.dataset.value = entry.value;
    button.onclick = () => chooseClass(entry.value);
    if (index < 9) button.append(element("kbd", "", index + 1));
    return button;
  });
  value = entries.length ? entries[0].value : 0;
}

function undo() {
  if (open && viewer.canUndo) viewer.undo();
}

function resize(by) {
  $("size").value = Number($("size").value) + by;
  applyTool();
}

const KEYS = {
  n: () => choose("look"), b: () => choose("pen"), f: () => choose("fill"), e: () => choose("erase"),
  z: undo, "[": () => resize(-2), "]": () => resize(2), ...view.keys,
};

onKeys(KEYS, () => open, (key) => {
  const entry = /^[1-9]$/.test(key) && document.querySelectorAll("[data-value]")[Number(key) - 1];
  return entry && (() => entry.click());
});

function wire() {
  for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => choose(button.dataset.tool);
  $("size").oninput = applyTool;
  $("undo").onclick = undo;
  $("clear").onclick = () => open && viewer.clear();
  $("submit").onclick = submit;
  $("name-button").onclick = attempt(async () => {
    const before = annotator;
    annotator = await askName(before);
    if (annotator === before) return;
    if (await save()) location.reload(); // claims are of the one who has opened them
  });
  addEventListener("beforeunload", (event) => { if (isChanged) event.preventDefault(); });
  addEventListener("pagehide", () => { if (open) api.release(open.request, holder); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

async function main() {
  wire();
  overview = await api.overview();
  choices();
  showOverview();
  await viewer.attach($("canvas"));
  applyTool();
  annotator = await knownName();
  await next();
  setInterval(look, LOOK_EVERY_MS);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
}

main().catch((error) => cover(error.message));
