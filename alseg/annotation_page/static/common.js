// What the pages of annotators and of reviewers share. All text is put on the page as text.
import { colour } from "./viewer.js";

const VIEWS = ["3", "0", "1", "2", "4"];
export const $ = (id) => document.getElementById(id);

export function say(text) {
  $("message-text").textContent = text;
  $("message").hidden = !text;
}

export function cover(text, button = "", action = null) {
  $("cover").hidden = !text;
  $("cover-text").textContent = text;
  $("cover-button").hidden = !button;
  $("cover-button").textContent = button;
  $("cover-button").onclick = action;
}

export function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

export function attempt(work) {
  return async (...args) => {
    try {
      await work(...args);
    } catch (error) {
      say(error.message);
    }
  };
}

export function asked(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}

// ---- the name of who uses the page

export async function askName(before) {
  $("name").value = before;
  do await asked($("name-dialog")); while (!$("name").value.trim());
  const name = $("name").value.trim();
  sessionStorage.setItem("annotator", name);
  localStorage.setItem("annotator", name);
  $("name-button").textContent = name;
  return name;
}

export async function knownName() {
  const name = sessionStorage.getItem("annotator") || (await askName(localStorage.getItem("annotator") || ""));
  $("name-button").textContent = name;
  return name;
}

// ---- the list of cases

export function row(unit, isOpen, state, kind, action) {
  const button = element("button", "", "");
  button.type = "button";
  button.dataset.case = unit.case;
  button.title = `${unit.case}${unit.request ? `, asked for by ${unit.request}` : ""}`;
  if (unit.score !== null) button.title += `, score ${unit.score.toPrecision(3)}`;
  if (isOpen) button.setAttribute("aria-current", "true");
  button.append(element("span", "order", unit.order), element("span", "case", unit.case));
  button.append(element("span", `state ${kind}`, state));
  button.onclick = action;
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// ---- what is looked at, and how

// The classes with their colours; what `make` returns for each of them is on the page.
export function showPalette(overview, viewer, make) {
  viewer.setPalette(overview.palette);
  const entries = overview.palette.filter((entry) => entry.value > 0);
  $("palette").replaceChildren(...entries.map((entry, index) => {
    const made = make(entry, index);
    const swatch = element("span", "swatch", "");
    swatch.style.color = `rgb(${colour(entry.value).join(" ")})`;
    made.append(swatch, element("span", "", entry.name));
    return made;
  }));
  $("channel").replaceChildren(...overview.channels.map((name, index) => {
    const option = element("option", "", name);
    option.value = index;
    return option;
  }));
  $("channel-label").hidden = overview.channels.length < 2;
  return entries;
}

export class View {
  // imageUrl: the address of a channel of the case that is open; empty while none is
  constructor(viewer, imageUrl) {
    this.viewer = viewer;
    $("view").onchange = () => this.set($("view").value);
    $("channel").onchange = attempt(async () => {
      const url = imageUrl($("channel").value);
      if (!url) return;
      await viewer.setImage(url);
      this.showWindow();
    });
    $("drawing-opacity").oninput = () => this.apply();
    $("uncertainty-opacity").oninput = () => this.apply();
    for (const id of ["low", "high"]) $(id).onchange = () => viewer.setWindow(Number($("low").value), Number($("high").value));
    viewer.onWindow = () => this.showWindow();
    viewer.onMove = () => this.showSlice();
    $("message-close").onclick = () => say("");
    this.keys = {
      " ": () => this.toggle("drawing-opacity"),
      u: () => this.toggle("uncertainty-opacity"),
      v: () => this.set(VIEWS[(VIEWS.indexOf($("view").value) + 1) % VIEWS.length]),
      ArrowUp: () => viewer.slice(1), ArrowDown: () => viewer.slice(-1),
    };
  }

  // A case has been loaded.
  begin(hasUncertainty) {
    $("uncertainty-label").hidden = !hasUncertainty;
    this.showWindow();
    this.showSlice();
    this.apply();
  }

  apply() {
    this.viewer.setDrawingOpacity(Number($("drawing-opacity").value));
    this.viewer.setUncertainty(Number($("uncertainty-opacity").value));
  }

  set(view) {
    $("view").value = view;
    this.viewer.setView(Number(view));
    this.showSlice();
  }

  showSlice() {
    if (this.viewer.nv.volumes.length) $("slice").textContent = this.viewer.sliceText();
  }

  showWindow() {
    const [low, high] = this.viewer.window();
    $("low").value = Number(low.toPrecision(5));
    $("high").value = Number(high.toPrecision(5));
  }

  toggle(id) {
    const slider = $(id);
    slider.dataset.before = Number(slider.value) ? slider.value : slider.dataset.before || "0.6";
    slider.value = Number(slider.value) ? 0 : slider.dataset.before;
    this.apply();
  }
}

// Keys of the page, where nobody types; `extra` gives an action for keys that have none of their own.
export function onKeys(keys, isOpen, extra = () => null) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=range]), select, textarea, dialog *") || document.querySelector("dialog[open]");
    if (typing || event.altKey || !isOpen()) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() !== "z") return;
    if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (event.target.matches("button") && event.key === " ") return;
    const action = extra(event.key) || keys[event.key.length > 1 ? event.key : event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
