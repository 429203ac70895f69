// Shows the chips of a dataset on a map and in a list, and the pictures and figures of the chip that the address names.
//
// data.js calls `cropViewer.load` with the facts of all chips, and the files in packs/ call `cropViewer.pack` with the
// pictures of some. Both are scripts, because a page that is opened from the file system may not fetch files. Their texts
// come from servers in places and are only ever set as text.

"use strict";

const MAX_PACKS = 4;
const ROWS = 100; // of a page of the list
const ADDRESS_EVERY_MS = 250; // Chromium ignores more than 200 changes of the address in 10 s
const MAX_TEXT = 300;
const ZOOM_OF_CHIP = 11;
const LABEL_PX = 80; // between the lines of the graticule
const GRATICULE = [0.1, 0.25, 0.5, 1, 2, 5, 10, 20];
const IN_DATASET = "in the dataset";
const NO_SPLIT = "none (rejected)";
const UNKNOWN = "not known";
// the palette of Okabe and Ito, which people with any kind of colour blindness can tell apart
const OKABE_ITO = ["#d55e00", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442"];
const GREY = "#8a8f94";
const SPLITS = { train: "#0072b2", validation: "#e69f00", test: "#009e73" };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
// upper limits in percent, with colours of cividis from dark to light
const QUALITY = [[0, "#00306f"], [1, "#3c4d6e"], [5, "#6c6e72"], [10, "#9b9178"], [25, "#cfb969"], [100, "#fee838"]];
const STRIPS = [
  ["true_colour", "True colour"],
  ["near_infrared", "Near infrared"],
  ["fmask", "Fmask (quality)"],
];

const $ = (id) => document.getElementById(id);
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const count = (value) => value.toLocaleString("en");
const percent = (value) => (value === null || value === undefined ? UNKNOWN : `${+Number(value).toFixed(1)} %`);
const short = (text) => (String(text).length > MAX_TEXT ? `${String(text).slice(0, MAX_TEXT)}\u2026` : String(text));
const isColour = (text) => /^#[0-9a-f]{6}$/i.test(text);
const dated = (index) => (data.columns.dates[index] || []).filter((date) => date);

let data = null;
let places = new Map(); // chip id -> index
let classNames = new Map(); // class value -> its row in data.classes
let reasons = [];
let shown = []; // indexes of the chips that pass the filters, in order
let selected = -1;
let page = 0;
let map, chipLayers, lineLayers, graticule, frame, hover;
let addressTimer = 0;
let addressAt = 0;
const packs = new Map(); // number -> pictures, least recently used first
const loading = new Set();

window.cropViewer = { load, pack: receivePack, packs };

// An element with text, never markup.
function element(tag, text = "", attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Text from outside, whose direction of writing does not change that of its surroundings.
const outside = (text, tag = "bdi") => element(tag, short(text), tag === "bdi" ? {} : { dir: "auto" });

function swatch(colour, dash = "") {
  const made = element("i", "", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = colour;
  if (dash) made.style.borderStyle = dash === "2 3" ? "dotted" : "dashed";
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// --- colours

// Of a chip in the chosen mode: {name, colour, dash}.
function look(index) {
  const columns = data.columns;
  const reason = columns.reason[index];
  switch ($("mode").value) {
    case "reason": {
      const at = reasons.indexOf(reason);
      return reason === "" ? { name: IN_DATASET, colour: GREY, dash: "" } : lookOfReason(at);
    }
    case "class": {
      const found = classNames.get(columns.dominant[index]);
      return found ? { name: found.name, colour: found.color, dash: "" } : { name: UNKNOWN, colour: GREY, dash: "2 3" };
    }
    case "quality": {
      const bad = (columns.bad[index] || []).filter((value) => value !== null);
      if (!bad.length) return { name: UNKNOWN, colour: GREY, dash: "2 3" };
      const worst = Math.max(...bad);
      const at = QUALITY.findIndex(([limit]) => worst <= limit);
      return lookOfQuality(at < 0 ? QUALITY.length - 1 : at);
    }
    default:
      return lookOfSplit(columns.split[index]);
  }
}

const lookOfReason = (at) => ({
  name: reasons[at],
  colour: OKABE_ITO[at % OKABE_ITO.length],
  dash: DASHES[1 + (Math.floor(at / OKABE_ITO.length) % 3)],
});
const lookOfSplit = (split) => ({
  name: split || NO_SPLIT,
  colour: SPLITS[split] || GREY,
  dash: { train: "", validation: "6 3", test: "8 3 2 3" }[split] ?? "2 3",
});
const lookOfQuality = (at) => ({
  name: at === 0 ? "0 %" : `over ${QUALITY[at - 1][0]} to ${QUALITY[at][0]} %`,
  colour: QUALITY[at][1],
  dash: "",
});

function everyLook() {
  switch ($("mode").value) {
    case "reason":
      return [{ name: IN_DATASET, colour: GREY, dash: "" }, ...reasons.map((_, at) => lookOfReason(at))];
    case "class":
      return [
        ...data.classes.map((one) => ({ name: one.name, colour: one.color, dash: "" })),
        { name: UNKNOWN, colour: GREY, dash: "2 3" },
      ];
    case "quality":
      return [...QUALITY.map((_, at) => lookOfQuality(at)), { name: UNKNOWN, colour: GREY, dash: "2 3" }];
    default:
      return [...Object.keys(SPLITS), ""].map(lookOfSplit);
  }
}

// --- start

function load(given) {
  data = given;
  const columns = data.columns;
  columns.id.forEach((id, index) => places.set(id, index));
  for (const one of data.classes) {
    if (!isColour(one.color)) one.color = GREY;
    classNames.set(one.value, one);
  }
  for (const one of data.fmask) if (!isColour(one.color)) one.color = GREY;
  reasons = [...new Set(columns.reason)].filter((reason) => reason).sort();
  // on a low screen the list needs the room
  $("filter-box").open = innerHeight > 700;
  $("title").textContent = short(`${data.dataset} ${data.year}`);
  option("class", data.classes.map((one) => [String(one.value), one.name]));
  option("tile", [...new Set(columns.tile)].filter((tile) => tile).sort().map((tile) => [tile, tile]));
  option("split", [...Object.keys(SPLITS).map((split) => [split, split]), ["-", NO_SPLIT]]);
  option("reason", [["-", IN_DATASET], ["*", "rejected for any reason"], ...reasons.map((one) => [`=${one}`, one])]);
  const dates = columns.dates.flatMap((three) => three || []).filter((date) => date).sort();
  for (const id of ["from", "to"]) {
    if (!dates.length) continue;
    $(id).min = dates[0];
    $(id).max = dates.at(-1);
  }
  drawMap();
  applyFilters();
  openAddress();
}

function option(id, values) {
  for (const [value, text] of values) {
    const made = element("option", String(text).slice(0, 60));
    made.value = value;
    $(id).append(made);
  }
}

// --- map

function drawMap() {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const animations = { zoomAnimation: !still, fadeAnimation: !still, markerZoomAnimation: !still, inertia: !still };
  // the arrow keys step through the chips
  map = L.map("map", { keyboard: false, attributionControl: false, minZoom: 2, maxZoom: 16, worldCopyJump: false, ...animations });
  for (const [name, height] of [["lines", 350], ["frame", 450]]) {
    const pane = map.createPane(name);
    pane.style.zIndex = height;
    pane.style.pointerEvents = "none";
  }
  const lines = L.canvas({ pane: "lines", padding: 0.3 });
  const line = (points, options) => L.polyline(points, { renderer: lines, pane: "lines", interactive: false, ...options });
  const boxes = L.canvas({ padding: 0.3 });
  chipLayers = data.columns.corners.map((corners, index) => {
    const layer = L.polygon(corners, { renderer: boxes, weight: 1.5 });
    layer.on("click", () => choose(index));
    layer.on("mouseover", () => showHover(index));
    layer.on("mouseout", () => hover.remove());
    return layer;
  });
  hover = L.tooltip({ direction: "top", opacity: 1, offset: [0, -4] });
  const all = L.latLngBounds([]);
  for (const corners of data.columns.corners) all.extend(L.latLngBounds(corners));
  for (const outline of Object.values(data.tiles)) all.extend(L.latLngBounds(outline));
  if (!all.isValid()) all.extend([[25, -125], [49, -67]]);
  map.fitBounds(all, { padding: [20, 20], animate: false });
  map.all = all;
  lineLayers = { states: [], tiles: [] };
  for (const flat of window.STATE_LINES || []) {
    const points = [];
    for (let at = 0, lat = 0, lng = 0; at < flat.length; at += 2) {
      lat += flat[at];
      lng += flat[at + 1];
      points.push([lat / 200, lng / 200]);
    }
    lineLayers.states.push(line(points, { weight: 1 }).addTo(map));
  }
  for (const [name, outline] of Object.entries(data.tiles)) {
    lineLayers.tiles.push(line([...outline, outline[0]], { weight: 1.5, dashArray: "5 4" }).addTo(map));
    const top = L.latLngBounds(outline);
    L.tooltip({ permanent: true, direction: "top", className: "tile-name", opacity: 1, offset: [0, 2] })
      .setLatLng([top.getNorth(), top.getCenter().lng])
      .setContent(outside(name))
      .addTo(map);
  }
  graticule = L.layerGroup().addTo(map);
  frame = L.layerGroup().addTo(map);
  L.control.scale({ imperial: false, position: "bottomright" }).addTo(map);
  const draw = () => {
    drawGraticule(line);
    drawLines();
  };
  map.on("moveend", () => drawGraticule(line));
  new ResizeObserver(() => map.invalidateSize({ animate: false })).observe($("map"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    draw();
    recolour();
  });
  draw();
}

function drawLines() {
  for (const one of lineLayers.states) one.setStyle({ color: variable("states") });
  for (const one of lineLayers.tiles) one.setStyle({ color: variable("tile") });
}

function degrees(value, [positive, negative]) {
  return `${+Math.abs(value).toFixed(2)}\u00b0${value === 0 ? "" : value > 0 ? positive : negative}`;
}

function drawGraticule(line) {
  graticule.clearLayers();
  const view = map.getBounds();
  const perLabel = (Math.max(view.getEast() - view.getWest(), 0.01) * LABEL_PX) / map.getSize().x;
  const step = GRATICULE.find((one) => one >= perLabel) || 30;
  const style = { color: variable("graticule"), weight: 1 };
  const label = (at, text, side) =>
    L.tooltip({ permanent: true, direction: side, className: "degrees", opacity: 1, offset: [0, 0] })
      .setLatLng(at)
      .setContent(element("span", text))
      .addTo(graticule);
  const [south, north] = [Math.max(view.getSouth(), -85), Math.min(view.getNorth(), 85)];
  for (let at = Math.ceil(view.getWest() / step); at * step <= view.getEast(); at += 1) {
    const lng = +(at * step).toFixed(4);
    line([[south, lng], [north, lng]], style).addTo(graticule);
    label([north, lng], degrees(lng, "EW"), "bottom");
  }
  for (let at = Math.ceil(south / step); at * step <= north; at += 1) {
    const lat = +(at * step).toFixed(4);
    line([[lat, view.getWest()], [lat, view.getEast()]], style).addTo(graticule);
    label([lat, view.getEast()], degrees(lat, "NS"), "left");
  }
}

function showHover(index) {
  const { name } = look(index);
  const words = element("span", "", {}, [outside(data.columns.id[index]), ": ", outside(name)]);
  hover.setLatLng(L.latLngBounds(data.columns.corners[index]).getCenter()).setContent(words).addTo(map);
}

function recolour() {
  for (const index of shown) {
    const { colour, dash } = look(index);
    const rejected = data.columns.reason[index] !== "";
    chipLayers[index].setStyle({ color: colour, fillColor: colour, fillOpacity: rejected ? 0.3 : 0.7, dashArray: dash || null });
  }
  drawLegend();
  drawFrame();
}

function drawLegend() {
  const counts = new Map();
  for (const index of shown) {
    const { name } = look(index);
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const rows = everyLook().map(({ name, colour, dash }) =>
    element("li", "", {}, [swatch(colour, dash), outside(name), element("span", count(counts.get(name) || 0), { class: "number" })]),
  );
  $("legend").querySelector("ul").replaceChildren(...rows);
  $("legend-title").textContent = $("mode").selectedOptions[0].textContent;
}

function drawFrame() {
  frame.clearLayers();
  if (selected < 0) return;
  const corners = data.columns.corners[selected];
  frame.renderer ??= L.canvas({ pane: "frame", padding: 0.3 });
  for (const [color, weight] of [["#fff", 6], ["#000", 3]]) {
    L.polygon(corners, { renderer: frame.renderer, pane: "frame", interactive: false, fill: false, color, weight }).addTo(frame);
  }
}

// --- filters

function applyFilters() {
  const columns = data.columns;
  const [wanted, tile, split, reason, from, to] = ["class", "tile", "split", "reason", "from", "to"].map((id) => $(id).value);
  const dominant = $("is-dominant").checked;
  const at = data.classes.findIndex((one) => String(one.value) === wanted);
  const passes = (index) => {
    if (wanted !== "") {
      const shares = columns.shares[index];
      const isMost = columns.dominant[index] === Number(wanted);
      if (dominant || !shares ? !isMost : !(shares[at] > 0)) return false;
    }
    if (tile && columns.tile[index] !== tile) return false;
    if (split && columns.split[index] !== (split === "-" ? "" : split)) return false;
    if (reason === "-" && columns.reason[index] !== "") return false;
    if (reason === "*" && columns.reason[index] === "") return false;
    if (reason.startsWith("=") && columns.reason[index] !== reason.slice(1)) return false;
    // dates of this form are ordered as texts are
    return !(from || to) || dated(index).some((date) => (!from || date >= from) && (!to || date <= to));
  };
  const before = new Set(shown);
  shown = columns.id.map((_, index) => index).filter(passes);
  const now = new Set(shown);
  for (const index of before) if (!now.has(index)) chipLayers[index].remove();
  for (const index of shown) if (!before.has(index)) chipLayers[index].addTo(map);
  hover.remove();
  recolour();
  page = Math.max(0, Math.floor(shown.indexOf(selected) / ROWS));
  drawList();
  showCount();
}

function showCount() {
  const total = data.columns.id.length;
  const place = shown.indexOf(selected);
  const words = `${count(shown.length)} of ${count(total)} chips shown`;
  $("count").textContent = place < 0 ? words : `${words}, this is number ${count(place + 1)}`;
  $("previous").disabled = $("next").disabled = !shown.length;
}

// --- list

const address = (id) => `#${encodeURIComponent(id)}`;

function drawList() {
  const pages = Math.max(1, Math.ceil(shown.length / ROWS));
  page = Math.min(Math.max(page, 0), pages - 1);
  const first = page * ROWS;
  const rows = shown.slice(first, first + ROWS).map((index) => {
    const columns = data.columns;
    const { colour, dash, name } = look(index);
    const facts = [columns.tile[index], columns.split[index] || columns.reason[index] || UNKNOWN];
    if (!["split", "reason"].includes($("mode").value)) facts.push(name);
    const link = element("a", "", { href: address(columns.id[index]) }, [
      swatch(colour, dash),
      outside(columns.id[index]),
      element("span", "", { class: "quiet" }, facts.filter((fact) => fact).flatMap((fact, at) => [at ? ", " : "", outside(fact)])),
    ]);
    link.dataset.index = index;
    if (index === selected) link.setAttribute("aria-current", "true");
    return element("li", "", {}, [link]);
  });
  $("list").start = first + 1;
  $("list").replaceChildren(...rows);
  $("page-of").textContent = shown.length
    ? `${count(first + 1)} to ${count(Math.min(first + ROWS, shown.length))} of ${count(shown.length)}`
    : "no chips";
  $("page-back").disabled = page === 0;
  $("page-on").disabled = page === pages - 1;
}

function markInList() {
  const hadFocus = $("list").contains(document.activeElement);
  const place = shown.indexOf(selected);
  if (place >= 0 && Math.floor(place / ROWS) !== page) {
    page = Math.floor(place / ROWS);
    drawList();
  }
  for (const link of $("list").querySelectorAll("a")) {
    if (Number(link.dataset.index) !== selected) {
      link.removeAttribute("aria-current");
      continue;
    }
    link.setAttribute("aria-current", "true");
    link.scrollIntoView({ block: "nearest" });
    if (hadFocus) link.focus({ preventScroll: true });
  }
}

// --- the chosen chip, and the address that names it

function choose(index) {
  if (index === selected) return;
  selected = index;
  notice("");
  const id = index < 0 ? "" : data.columns.id[index];
  document.title = short(`${id ? `${id} - ` : ""}${data.dataset} ${data.year}`);
  $("chip").hidden = index < 0;
  document.body.classList.toggle("with-chip", index >= 0);
  drawChip();
  drawFrame();
  markInList();
  showCount();
  if (index >= 0) {
    map.invalidateSize({ animate: false });
    const box = L.latLngBounds(data.columns.corners[index]);
    if (!map.getBounds().pad(-0.1).contains(box)) map.setView(box.getCenter(), Math.max(map.getZoom(), ZOOM_OF_CHIP - 3), { animate: false });
  }
  const wait = addressAt + ADDRESS_EVERY_MS - Date.now();
  clearTimeout(addressTimer);
  if (wait <= 0) writeAddress();
  else addressTimer = setTimeout(writeAddress, wait);
}

function writeAddress() {
  clearTimeout(addressTimer);
  const hash = selected < 0 ? "" : address(data.columns.id[selected]);
  if (location.hash === hash) return;
  addressAt = Date.now();
  history.pushState(null, "", hash || location.pathname + location.search);
}

function openAddress() {
  clearTimeout(addressTimer);
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    // not encoded: as it is
  }
  if (!id) return choose(-1);
  const index = places.get(id);
  if (index !== undefined) return choose(index);
  const wrong = location.hash;
  choose(-1);
  history.replaceState(null, "", wrong);
  notice(`There is no chip "${short(id)}" in this dataset.`);
}

function step(by) {
  if (!shown.length) return;
  const place = shown.indexOf(selected);
  let to;
  if (by === -Infinity) to = 0;
  else if (by === Infinity) to = shown.length - 1;
  else if (place >= 0) to = place + by;
  else if (selected < 0) to = by > 0 ? 0 : shown.length - 1;
  else {
    // the chip is not among those shown: the nearest in order
    const after = shown.findIndex((index) => index > selected);
    to = by > 0 ? (after < 0 ? shown.length - 1 : after) : (after < 0 ? shown.length : after) - 1;
  }
  choose(shown[Math.min(Math.max(to, 0), shown.length - 1)]);
}

function close() {
  const before = selected;
  choose(-1);
  $("list").querySelector(`a[data-index="${before}"]`)?.focus();
}

// --- the panel of a chip

function drawChip() {
  const panel = $("chip");
  panel.scrollTop = 0;
  if (selected < 0) return panel.replaceChildren();
  const columns = data.columns;
  const reason = columns.reason[selected];
  const closing = element("button", "\u00d7", { type: "button", class: "close", "aria-label": "Close the chip", "aria-keyshortcuts": "Escape" });
  closing.addEventListener("click", close);
  const verdict = reason
    ? ["Rejected: ", outside(reason), ...(columns.detail[selected] ? [" (", outside(columns.detail[selected]), ")"] : [])]
    : ["In the dataset, split ", outside(columns.split[selected] || UNKNOWN)];
  const title = element("h2", "", { id: "chip-title" }, [outside(columns.id[selected])]);
  const parts = [
    closing,
    title,
    element("p", "", { class: "verdict" }, [...verdict, ...(columns.tile[selected] ? [", tile ", outside(columns.tile[selected])] : [])]),
  ];
  if (!shown.includes(selected)) parts.push(element("p", "The filters leave this chip out.", { class: "quiet" }));
  parts.push(element("div", "", { id: "pictures" }), drawShares(), drawFigures(), drawScenes());
  panel.replaceChildren(...parts);
  drawPictures();
}

function drawPictures() {
  const columns = data.columns;
  const number = columns.pack[selected];
  const place = $("pictures");
  if (number < 0) {
    const why = columns.reason[selected];
    place.replaceChildren(
      element("p", "", { class: "quiet" }, ["There are no pictures of this chip", ...(why ? [": it was rejected (", outside(why), ")."] : ["."])]),
    );
    return;
  }
  const pack = packs.get(number);
  if (!pack) {
    if (!place.childElementCount) place.append(element("p", "Loading the pictures\u2026", { class: "quiet waiting" }));
    loadPack(number);
    return;
  }
  packs.delete(number);
  packs.set(number, pack);
  const id = columns.id[selected];
  const pictures = Object.hasOwn(pack, id) ? pack[id] : {};
  const dates = columns.dates[selected] || [];
  const heads = [0, 1, 2].map((at) => element("span", "", {}, [outside(dates[at] || UNKNOWN)]));
  const made = [element("div", "", { class: "dates" }, heads)];
  for (const [name, words] of STRIPS) made.push(figure(pictures[name], words, short(`${words} on ${dates.join(", ")}`), name === "fmask"));
  const legend = data.fmask.map((one) => element("li", "", {}, [swatch(one.color), outside(one.name)]));
  made.push(element("ul", "", { class: "legend-row", "aria-label": "Legend of Fmask" }, legend));
  place.replaceChildren(...made);
  const mask = figure(pictures.mask, "Class mask", "Class mask; the shares of the classes are its legend", true);
  mask.classList.add("square");
  $("mask").replaceChildren(mask);
  fetchAhead();
}

function figure(source, words, alternative, pixelated) {
  if (typeof source !== "string" || !source.startsWith("data:image/")) {
    return element("figure", "", {}, [element("figcaption", `${words}: no picture`)]);
  }
  const image = element("img", "", { alt: alternative, class: pixelated ? "pixels" : "" });
  image.src = source;
  return element("figure", "", {}, [element("figcaption", words), element("div", "", { class: "strip" }, [image])]);
}

function drawShares() {
  const shares = data.columns.shares[selected];
  const section = element("section", "", { class: "shares", "aria-label": "Classes" }, [element("div", "", { id: "mask" })]);
  if (!shares) {
    section.append(element("p", "The class shares are not known.", { class: "quiet" }));
    return section;
  }
  const largest = Math.max(...shares);
  const rows = data.classes
    .map((one, at) => [one, shares[at]])
    .filter(([, share]) => share > 0)
    .sort(([, one], [, other]) => other - one)
    .map(([one, share]) => {
      const bar = element("i", "", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${(100 * share) / largest}%`;
      bar.style.backgroundColor = one.color;
      return element("tr", "", {}, [
        element("th", "", { scope: "row" }, [swatch(one.color), outside(one.name)]),
        element("td", percent(share), { class: "number" }),
        element("td", "", { class: "bars" }, [bar]),
      ]);
    });
  section.append(element("table", "", {}, [element("caption", "Class shares"), element("tbody", "", {}, rows)]));
  return section;
}

function drawFigures() {
  const columns = data.columns;
  const bad = columns.bad[selected];
  const dates = columns.dates[selected] || [];
  const missing = columns.missing[selected];
  const facts = [
    ["Bad pixels", bad ? bad.map((value, at) => `${percent(value)}${dates[at] ? ` (${short(dates[at])})` : ""}`).join(", ") : UNKNOWN],
    ["Missing pixels", missing === null ? UNKNOWN : count(missing)],
    ["Purity of labels", percent(columns.purity[selected])],
    ["Confidence of labels", percent(columns.confidence[selected])],
  ];
  return element("dl", "", { class: "figures" }, facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function drawScenes() {
  const section = element("section", "", {}, [element("h3", "Scenes")]);
  const scenes = (data.columns.scenes[selected] || []).map((at) => data.scenes[at]).filter((scene) => scene);
  if (!scenes.length) section.append(element("p", "None.", { class: "quiet" }));
  for (const scene of scenes) {
    const good = scene.files.filter(([, , verified]) => verified).length;
    const rows = scene.files.map(([name, cid, verified]) =>
      element("tr", "", {}, [
        element("th", "", { scope: "row" }, [outside(name)]),
        element("td", verified ? "verified" : "not verified"),
        element("td", "", { class: "cid" }, [cid ? outside(cid) : "none"]),
      ]),
    );
    const heads = ["Band", "Checked", "CID"].map((words) => element("th", words, { scope: "col" }));
    const table = element("table", "", {}, [element("thead", "", {}, [element("tr", "", {}, heads)]), element("tbody", "", {}, rows)]);
    section.append(
      element("details", "", {}, [
        element("summary", "", {}, [
          outside(scene.date),
          " ",
          outside(scene.id),
          element("span", ` ${good} of ${scene.files.length} files verified`, { class: "quiet" }),
        ]),
        table,
      ]),
    );
  }
  return section;
}

// --- packs of pictures

function loadPack(number) {
  if (packs.has(number) || loading.has(number)) return;
  const name = data.packs[number];
  if (typeof name !== "string" || !/^packs\/\d{1,9}\.js$/.test(name)) return packFailed(number, "an unknown file");
  loading.add(number);
  const script = document.createElement("script");
  script.src = name;
  script.addEventListener("load", () => {
    script.remove();
    if (loading.delete(number)) packFailed(number, name);
  });
  script.addEventListener("error", () => {
    script.remove();
    loading.delete(number);
    packFailed(number, name);
  });
  document.head.append(script);
}

function packFailed(number, name) {
  if (selected < 0 || data.columns.pack[selected] !== number) return;
  $("pictures").replaceChildren(element("p", `The pictures cannot be shown: ${name} is missing or damaged.`, { role: "alert" }));
}

function receivePack(number, pictures) {
  if (!loading.delete(number)) return;
  packs.set(number, pictures);
  const current = selected < 0 ? -1 : data.columns.pack[selected];
  for (const old of packs.keys()) {
    if (packs.size <= MAX_PACKS) break;
    if (old !== current && old !== number) packs.delete(old);
  }
  if (number === current) drawPictures();
}

// Load the pack of the next chips that have pictures in another one.
function fetchAhead() {
  const current = data.columns.pack[selected];
  for (let at = shown.indexOf(selected) + 1; at > 0 && at < shown.length; at += 1) {
    const number = data.columns.pack[shown[at]];
    if (number >= 0 && number !== current) return loadPack(number);
  }
}

// --- events

$("filters").addEventListener("input", (event) => {
  if (!data) return;
  if (event.target.id === "mode") {
    recolour();
    drawList();
  } else applyFilters();
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", (event) => {
  event.preventDefault();
  const mode = $("mode").value;
  for (const id of ["class", "tile", "split", "reason", "from", "to"]) $(id).value = "";
  $("is-dominant").checked = false;
  $("mode").value = mode;
  if (data) applyFilters();
});
$("page-back").addEventListener("click", () => turn(-1));
$("page-on").addEventListener("click", () => turn(1));
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("help-button").addEventListener("click", () => $("help").showModal());
window.addEventListener("popstate", () => data && openAddress());

function turn(by) {
  page += by;
  drawList();
  $("list").scrollTop = 0;
}

document.addEventListener("keydown", (event) => {
  if (!data || event.ctrlKey || event.altKey || event.metaKey || $("help").open) return;
  if (event.target.closest("input, select, textarea")) return;
  const moves = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };
  const actions = {
    ArrowRight: () => step(1),
    j: () => step(1),
    ArrowLeft: () => step(-1),
    k: () => step(-1),
    Home: () => step(-Infinity),
    End: () => step(Infinity),
    Escape: () => selected >= 0 && close(),
    "?": () => $("help").showModal(),
    "+": () => map.zoomIn(),
    "-": () => map.zoomOut(),
    0: () => map.fitBounds(map.all, { padding: [20, 20] }),
  };
  const action = event.shiftKey && moves[event.key] ? () => map.panBy(moves[event.key]) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// data.js comes after this file, and both before this event
document.addEventListener("DOMContentLoaded", () => {
  if (!data) notice("data.js, which has the facts of the chips, is missing or damaged.");
});
