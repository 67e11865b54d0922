// The page of a reviewer. What the server says is put on the page as text, never as HTML.
import { api } from "./api.js";
import { $, View, askName, attempt, cover, element, knownName, onKeys, row, say, showPalette } from "./common.js";
import { Viewer } from "./viewer.js";

let reviewer = "";
let overview = null;
let open = null; // the unit that is shown: { request, case, checksum, reviews, ... }
let kind = "label"; // of what is shown of it
let isLoading = false;
const viewer = new Viewer(() => {});
const view = new View(viewer, (channel) => (open ? api.imageUrl(open.request, open.case, channel) : ""));
globalThis.viewer = viewer; // for the console of the browser, and for tests

// ---- the list of units, round by round

const WORDS = { "to review": "to review", "no label": "no label yet" };

function isOpen(unit) {
  return Boolean(open) && open.case === unit.case && open.request === unit.request;
}

function roundOf(name) {
  const found = /^round_0*(\d+)/.exec(name);
  return found ? `round ${found[1]}` : name;
}

function showOverview() {
  const { units, run } = overview;
  const labelled = units.filter((unit) => unit.has_label);
  const n = labelled.filter((unit) => !WORDS[unit.state]).length;
  $("title").textContent = document.title = `Review · ${run}`;
  $("progress").max = Math.max(labelled.length, 1);
  $("progress").value = n;
  $("progress-text").textContent = `${n} of ${labelled.length} reviewed`;
  const rows = [];
  units.forEach((unit, index) => {
    if (!index || units[index - 1].request !== unit.request) rows.push(element("li", "round", roundOf(unit.request)));
    const state = WORDS[unit.state] || `${unit.state} by ${unit.reviewer}`;
    rows.push(row(unit, isOpen(unit), state, unit.state, () => openUnit(unit)));
  });
  $("cases").replaceChildren(...rows);
}

// ---- opening a unit

const openUnit = attempt(async (unit) => {
  if (isOpen(unit) || isLoading) return;
  const { request, case: name } = unit;
  isLoading = true;
  setVerdicts(false);
  open = null;
  say("");
  cover(`Loading ${name} …`);
  try {
    const about = await api.about(request, name);
    const first = unit.has_label ? "label" : "proposal";
    const isShown = unit.has_label || unit.has_proposal;
    const drawing = isShown ? await api.shown(request, name, first) : new Uint8Array();
    $("channel").value = "0";
    await viewer.load(api.imageUrl(request, name, 0), drawing, unit.has_uncertainty ? api.uncertaintyUrl(request, name) : "");
    viewer.setTool("look", 0, 1);
    open = { ...unit, ...about };
    kind = first;
  } catch (error) {
    cover(error.message);
    throw error;
  } finally {
    isLoading = false;
  }
  if (open.middle) viewer.lookAt(open.middle);
  view.begin(unit.has_uncertainty);
  $("comment").value = "";
  showAbout();
  showKind();
  setVerdicts(unit.has_label);
  cover("");
  $("canvas").focus();
  showOverview();
  document.body.dataset.open = `${request} ${name}`;
});

function showAbout() {
  const parts = [];
  if (open.version) parts.push(`version ${open.version}`);
  if (open.annotator) parts.push(`by ${open.annotator}`);
  if (open.minutes !== null) parts.push(`${open.minutes.toFixed(1)} min`);
  if (open.score !== null) parts.push(`score ${open.score.toPrecision(3)}`);
  if (open.middle) parts.push("annotated within its regions only");
  $("about").textContent = [open.case, ...parts].join(", ");
  $("said").replaceChildren(...open.reviews.map((said) => {
    const version = said.version ? ` version ${said.version}` : "";
    const when = said.time.slice(0, 16).replace("T", " ");
    return element("li", said.verdict, `${said.verdict}${version} by ${said.reviewer}, ${when}${said.comment && "\n"}${said.comment}`);
  }));
}

function showKind() {
  for (const button of document.querySelectorAll("[data-kind]")) {
    button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    button.disabled = !(button.dataset.kind === "label" ? open.has_label : open.has_proposal);
  }
}

const show = attempt(async (wanted) => {
  const mine = open;
  if (!mine || wanted === kind || document.querySelector(`[data-kind="${wanted}"]`).disabled) return;
  $("saved").textContent = `loading the ${wanted} …`;
  try {
    const drawing = await api.shown(mine.request, mine.case, wanted);
    if (open !== mine) return;
    viewer.show(drawing);
    kind = wanted;
    showKind();
  } finally {
    $("saved").textContent = "";
  }
});

// ---- the verdict

function setVerdicts(enabled) {
  for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = !enabled;
}

const judge = attempt(async (verdict) => {
  const mine = open;
  if (!mine || !mine.has_label || document.querySelector("[data-verdict]").disabled) return;
  setVerdicts(false);
  try {
    await api.review(mine.request, mine.case, { reviewer, verdict, comment: $("comment").value, checksum: mine.checksum });
  } catch (error) {
    setVerdicts(true);
    throw error;
  }
  $("saved").textContent = `${mine.case}: ${verdict}`;
  await next();
});

async function next() {
  overview = await api.overview();
  const unit = overview.units.find((each) => each.state === "to review" && !isOpen(each));
  if (unit) return openUnit(unit);
  open = null;
  delete document.body.dataset.open;
  showOverview();
  cover(overview.units.length
    ? "All labels that there are have been reviewed. A click on a case in the list shows it again."
    : "The run has not asked for anything yet.",
  "Look again", attempt(next));
}

const KEYS = {
  l: () => show("label"), p: () => show("proposal"),
  a: () => judge("accepted"), r: () => judge("returned"), ...view.keys,
};

function wire() {
  for (const button of document.querySelectorAll("[data-kind]")) button.onclick = () => show(button.dataset.kind);
  for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => judge(button.dataset.verdict);
  onKeys(KEYS, () => open);
  $("name-button").onclick = attempt(async () => {
    reviewer = await askName(reviewer);
  });
}

async function main() {
  wire();
  overview = await api.overview();
  showPalette(overview, viewer, () => element("div", "entry", ""));
  showOverview();
  await viewer.attach($("canvas"));
  reviewer = await knownName();
  await next();
}

main().catch((error) => cover(error.message));
