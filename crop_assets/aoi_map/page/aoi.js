// Draws an area of interest on the map, and shows what the server counts inside it.
//
// A shape is {rings, properties}: rings of [longitude, latitude] without the closing position, the outer ring first.
// After each change, everything on the map is drawn again from `shapes`.

"use strict";

const DIGITS = 7;
const COUNT_EVERY_MS = 100;
const NEAR_PX = 12; // a click this close to the first corner closes a polygon
const MOVED_PX = 5; // a press that moves less is a click
const MAX_HANDLES = 300;
const NAMES_FROM_ZOOM = 7;
const NAME_PX = 60;
const FEW_NAMES = 14;
const UNKNOWN = "\u2013";
const HINTS = {
  rectangle: "Press and drag, or click two corners. Escape cancels.",
  polygon: "Click the corners. Double-click, press Enter, or click the first corner to finish. Escape cancels.",
  edit: "Drag a corner. Drag a small point to add a corner; double-click a corner to remove it.",
  delete: "Click a shape to delete it.",
};

const $ = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });
const rounded = (latlng) => [+latlng.lng.toFixed(DIGITS), +latlng.lat.toFixed(DIGITS)];
const latlngs = (ring) => ring.map(([lng, lat]) => [lat, lng]);

let map, tileOutlines, tileNames, shapeLayers, draftLayers, handleLayers;
let shapes = [];
let history = [];
let mode = ""; // "", or the id of the button that is pressed
let draft = null; // the unfinished shape: {kind, points, cursor, isPressed}
let savedText = ""; // the shapes as they were loaded or saved
let savedTag = null; // the entity tag of the file, or null if there is no file
let needed = new Set(); // names of the tiles that the area needs
let counted = null; // the server's counts for the current drawing, or null
let busy = true; // whether the server has yet to answer
let saving = false;

// --- requests to the server

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is `crop-assets aoi` still running?");
  }
  if (answer.ok || answer.status === 412) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Error(body.error || `The server answered ${answer.status} to ${path}.`);
}

function showError(error) {
  $("error").hidden = !error;
  $("error").querySelector("p").textContent = error ? error.message : "";
}

function geojson(drawn) {
  const features = drawn.map(({ rings, properties }) => ({
    type: "Feature",
    properties,
    geometry: { type: "Polygon", coordinates: rings.map((ring) => [...ring, ring[0]]) },
  }));
  return JSON.stringify({ type: "FeatureCollection", features });
}

function shapesOf(collection) {
  return collection.features.flatMap(({ properties, geometry }) => {
    const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
    return polygons.map((rings) => ({ properties, rings: rings.map((ring) => ring.slice(0, -1)) }));
  });
}

// --- counting

let counting = false;
let countAgain = false;
let countFailed = false;

// One request at a time, so that answers stay in order, at most ten per second, and always one for the last state.
// The numbers may be out of date only while `aria-busy` is true.
async function count() {
  countAgain = true;
  setBusy(true);
  counted = null;
  showStatus();
  if (counting) return;
  counting = true;
  while (countAgain) {
    countAgain = false;
    const drawing = [...shapes, ...draftShape()];
    try {
      const headers = { "Content-Type": "application/geo+json" };
      const answer = await ask("count", { method: "POST", headers, body: geojson(drawing) });
      const counts = await answer.json();
      showNumbers(counts);
      if (!countAgain) counted = counts;
      if (countFailed) showError(null);
      countFailed = false;
    } catch (error) {
      countFailed = true;
      showNumbers(null);
      showError(error);
    }
    setBusy(countAgain);
    showStatus();
    await new Promise((done) => setTimeout(done, COUNT_EVERY_MS));
  }
  counting = false;
}

function setBusy(isBusy) {
  busy = isBusy;
  $("area").setAttribute("aria-busy", busy);
}

// `counts` is null if they are unknown.
function showNumbers(counts) {
  for (const name of ["boxes", "rich", "chips", "km2"]) $(name).textContent = counts ? number(counts[name]) : UNKNOWN;
  const tiles = counts ? counts.tiles : [];
  $("tiles").textContent = counts ? number(tiles.length) : UNKNOWN;
  const more = tiles.length - FEW_NAMES;
  const names = tiles.slice(0, FEW_NAMES).join(", ");
  $("tile-names").textContent = more > 0 ? `${names} and ${number(more)} more` : names;
  const repaired = counts ? counts.repaired : 0;
  $("repaired").hidden = !repaired;
  $("repaired").textContent =
    (repaired > 1 ? `${repaired} polygons cross their own edges.` : "A polygon crosses its own edge.") +
    " The area is saved as drawn and repaired when it is used; the numbers are for the repaired area.";
  showNeeded(new Set(tiles));
}

function showNeeded(names) {
  const before = needed;
  needed = names;
  tileOutlines.eachLayer((layer) => {
    const name = layer.feature.properties.tile;
    if (before.has(name) !== needed.has(name)) layer.setStyle(tileStyle(layer.feature));
    if (needed.has(name) && !before.has(name)) layer.bringToFront();
  });
  showTileNames();
}

// --- the map

function tileStyle(feature) {
  return needed.has(feature.properties.tile)
    ? { color: colour("needed"), weight: map.getZoom() < NAMES_FROM_ZOOM ? 1 : 2, opacity: 0.95, fill: false }
    : { color: colour("tile"), weight: 1, opacity: 0.45, fill: false };
}

function makeMap(page) {
  map = L.map("map", { minZoom: page.min_zoom, maxZoom: 13, zoomControl: false });
  map.attributionControl.setPrefix(false);
  L.control.zoom({ position: "bottomright" }).addTo(map);
  L.control.scale({ imperial: false }).addTo(map);
  const pane = map.createPane("outlines");
  pane.style.zIndex = 350;
  // Leaflet's canvas forwards mouse moves only every 32 ms, and would miss the final position
  pane.style.pointerEvents = "none";
  const around = L.latLngBounds(page.bounds).pad(1);
  map.setMaxBounds(around);
  map.fitBounds(page.bounds);

  const layers = {};
  if (page.base_map) layers["Base map"] = baseMap(page.base_map).addTo(map);
  layers["Chip boxes"] = L.tileLayer("chips/{z}/{x}/{y}.png", { zIndex: 2, bounds: around }).addTo(map);
  tileNames = L.layerGroup();
  tileOutlines = L.geoJSON(page.tiles, {
    style: tileStyle,
    interactive: false,
    pane: "outlines",
    renderer: L.canvas({ pane: "outlines" }),
  });
  layers["HLS tiles"] = L.layerGroup([tileOutlines, tileNames]).addTo(map);
  const narrow = matchMedia("(max-width: 760px)").matches;
  L.control.layers(null, layers, { collapsed: narrow }).addTo(map);
  shapeLayers = L.layerGroup().addTo(map);
  draftLayers = L.layerGroup().addTo(map);
  handleLayers = L.layerGroup().addTo(map);

  map.on("zoomend", () => tileOutlines.setStyle(tileStyle));
  map.on("moveend", showTileNames);
  map.on("moveend", showHandles);
  map.on("mousedown", pressed);
  map.on("mousemove", moved);
  map.on("click", clicked);
  map.on("dblclick", () => draft?.kind === "polygon" && finishPolygon());
  document.addEventListener("mouseup", released);
  showTileNames();
}

function baseMap(url) {
  const layer = L.tileLayer(url, {
    maxZoom: 19,
    zIndex: 1,
    className: "base",
    attribution: url.includes("openstreetmap.org") ? "&copy; OpenStreetMap contributors" : "",
  });
  let reached = false;
  layer.on("tileload", () => (reached = true));
  layer.on("tileerror", () => {
    if (reached || !$("notice").hidden) return;
    $("notice").textContent = "The base map cannot be reached. Everything else works without it.";
    $("notice").hidden = false;
  });
  return layer;
}

// If tiles of two UTM zones overlap, only one name is shown, preferably of a tile that is needed.
function showTileNames() {
  tileNames.clearLayers();
  if (map.getZoom() < NAMES_FROM_ZOOM) return;
  const view = map.getBounds();
  const isNeeded = (layer) => needed.has(layer.feature.properties.tile);
  const shown = [];
  for (const layer of tileOutlines.getLayers().sort((a, b) => isNeeded(b) - isNeeded(a))) {
    const middle = layer.getBounds().getCenter();
    if (!view.contains(middle) || shown.some((other) => pixelsBetween(other, middle) < NAME_PX)) continue;
    shown.push(middle);
    const html = document.createElement("span");
    html.textContent = layer.feature.properties.tile;
    html.className = "tile-name";
    html.classList.toggle("needed", isNeeded(layer));
    const icon = L.divIcon({ html, className: "", iconSize: [NAME_PX, 18] });
    tileNames.addLayer(L.marker(middle, { icon, interactive: false, keyboard: false }));
  }
}

// --- the shapes

function showShapes() {
  shapeLayers.clearLayers();
  shapes.forEach((shape) => {
    shape.layer = L.polygon(shape.rings.map(latlngs), {
      className: "area-shape",
      color: colour("area"),
      weight: 2.5,
      fillOpacity: 0.12,
    });
    shape.layer.on("click", () => mode === "delete" && remove(shape));
    shapeLayers.addLayer(shape.layer);
  });
  $("undo").disabled = !history.length && !draft;
  for (const name of ["clear", "edit", "delete"]) $(name).disabled = !shapes.length;
  if (!shapes.length && (mode === "edit" || mode === "delete")) setMode("");
  showHandles();
  showStatus();
}

const text = () => geojson(shapes);

// All changes of shapes go through here, so that they can be undone.
function change(next) {
  history.push(text());
  shapes = next;
  showShapes();
  count();
}

function remove(shape) {
  change(shapes.filter((other) => other !== shape));
}

function undo() {
  if (draft?.kind === "polygon" && draft.points.length > 1) {
    draft.points.pop();
    showDraft();
  } else if (draft) {
    dropDraft();
  } else if (history.length) {
    shapes = shapesOf(JSON.parse(history.pop()));
    showShapes();
  }
  count();
}

function showStatus() {
  const isChanged = text() !== savedText;
  $("save").disabled = saving || !isChanged || !shapes.length;
  if (isChanged) $("saved").hidden = true;
  if (draft) return;
  const inside = counted
    ? `${number(counted.boxes)} boxes and ${number(counted.tiles.length)} HLS tiles inside.`
    : busy
      ? "Counting."
      : "Not counted.";
  if (!shapes.length) $("status").textContent = "Draw a rectangle or a polygon to begin.";
  else $("status").textContent = isChanged ? `${inside} Not saved yet.` : `${inside} Saved.`;
}

// --- drawing

function setMode(next) {
  mode = next;
  dropDraft();
  for (const name of Object.keys(HINTS)) $(name).setAttribute("aria-pressed", name === mode);
  const drawing = mode === "rectangle" || mode === "polygon";
  map.getContainer().classList.toggle("drawing", drawing);
  map.getContainer().classList.toggle("deleting", mode === "delete");
  map.dragging[mode === "rectangle" ? "disable" : "enable"]();
  map.boxZoom[drawing ? "disable" : "enable"]();
  map.doubleClickZoom[drawing ? "disable" : "enable"]();
  $("hint").textContent = HINTS[mode] || "";
  showHandles();
}

function dropDraft() {
  if (!draft) return;
  draft = null;
  showDraft();
  count();
}

// The outline of the unfinished shape, with the cursor as its last corner.
function draftRing() {
  if (!draft) return [];
  const cursor = rounded(draft.cursor);
  const points = draft.points.map(rounded);
  if (draft.kind === "rectangle") {
    const [[x, y]] = points;
    return x === cursor[0] || y === cursor[1] ? [] : [[x, y], [cursor[0], y], cursor, [x, cursor[1]]];
  }
  const last = points[points.length - 1];
  return last[0] === cursor[0] && last[1] === cursor[1] ? points : [...points, cursor];
}

function draftShape() {
  const ring = draftRing();
  return ring.length < 3 ? [] : [{ rings: [ring], properties: {} }];
}

function showDraft() {
  draftLayers.clearLayers();
  $("undo").disabled = !history.length && !draft;
  const look = { color: colour("area"), weight: 2, dashArray: "5 4", fillOpacity: 0.1, interactive: false };
  const ring = draftRing();
  if (ring.length > 1) draftLayers.addLayer(L.polygon(latlngs(ring), look));
  if (draft?.kind !== "polygon") return;
  draft.points.forEach((point, index) => {
    const dot = { color: colour("area"), weight: 2, fillColor: "#fff", fillOpacity: 1, interactive: false };
    draftLayers.addLayer(L.circleMarker(point, { ...dot, radius: index ? 3 : 6 }));
  });
}

function finish(ring) {
  setMode("");
  change([...shapes, { rings: [ring], properties: {} }]);
}

function pixelsBetween(one, other) {
  return map.latLngToContainerPoint(one).distanceTo(map.latLngToContainerPoint(other));
}

function pressed(event) {
  if (mode !== "rectangle" || event.originalEvent.button !== 0) return;
  draft ??= { kind: "rectangle", points: [event.latlng] };
  draft.cursor = event.latlng;
  draft.isPressed = true;
}

function moved(event) {
  if (!draft) return;
  draft.cursor = event.latlng;
  showDraft();
  count();
}

function released() {
  if (draft?.kind !== "rectangle" || !draft.isPressed) return;
  draft.isPressed = false;
  const ring = draftRing();
  // if the press did not move, the next click is the other corner
  if (ring.length && pixelsBetween(draft.points[0], draft.cursor) > MOVED_PX) finish(ring);
}

function clicked(event) {
  if (mode !== "polygon") return;
  if (!draft) {
    draft = { kind: "polygon", points: [event.latlng], cursor: event.latlng };
  } else if (draft.points.length > 2 && pixelsBetween(draft.points[0], event.latlng) < NEAR_PX) {
    finishPolygon();
    return;
  } else if (pixelsBetween(draft.points[draft.points.length - 1], event.latlng) > MOVED_PX) {
    // the second click of a double-click adds nothing
    draft.points.push(event.latlng);
  }
  showDraft();
  count();
}

function finishPolygon() {
  if (draft.points.length < 3) {
    $("hint").textContent = "A polygon needs three corners. Click one more, or press Escape.";
    return;
  }
  finish(draft.points.map(rounded));
}

// --- editing

function isRectangle(ring) {
  const isSide = ([x, y], [u, v]) => (x === u) !== (y === v);
  return (
    ring.length === 4 &&
    ring.every((point, i) => isSide(point, ring[(i + 1) % 4])) &&
    new Set(ring.map(([x]) => x)).size === 2 &&
    new Set(ring.map(([, y]) => y)).size === 2
  );
}

function showHandles() {
  handleLayers.clearLayers();
  if (mode !== "edit") return;
  const view = map.getBounds().pad(0.1);
  const corners = [];
  for (const shape of shapes) {
    for (const ring of shape.rings) {
      ring.forEach((point, index) => view.contains(latlngs([point])[0]) && corners.push({ shape, ring, index }));
    }
  }
  $("hint").textContent =
    corners.length > MAX_HANDLES ? `Zoom in to edit: ${number(corners.length)} corners are in view.` : HINTS.edit;
  if (corners.length > MAX_HANDLES) return;
  for (const { shape, ring, index } of corners) {
    addCorner(shape, ring, index);
    if (!isRectangle(ring)) addMiddle(shape, ring, index);
  }
}

function handle(latlng, kind, size) {
  const icon = L.divIcon({ className: `handle ${kind}`, iconSize: [size, size] });
  const marker = L.marker(latlng, { icon, draggable: true, keyboard: false });
  handleLayers.addLayer(marker);
  return marker;
}

function addCorner(shape, ring, index) {
  const marker = handle(latlngs([ring[index]])[0], "corner", 14);
  let isBox = false;
  let before = "";
  marker.on("dragstart", () => {
    before = text();
    isBox = isRectangle(ring);
    handleLayers.eachLayer((other) => other !== marker && handleLayers.removeLayer(other));
  });
  marker.on("drag", () => {
    moveCorner(ring, index, rounded(marker.getLatLng()), isBox);
    redraw(shape);
  });
  marker.on("dragend", () => edited(before));
  marker.on("dblclick", () => {
    if (ring.length < 4 || isRectangle(ring)) return;
    before = text();
    ring.splice(index, 1);
    redraw(shape);
    edited(before);
  });
}

function addMiddle(shape, ring, index) {
  const [[ax, ay], [bx, by]] = [ring[index], ring[(index + 1) % ring.length]];
  const marker = handle([(ay + by) / 2, (ax + bx) / 2], "middle", 11);
  let before = "";
  marker.on("dragstart", () => {
    before = text();
    ring.splice(index + 1, 0, rounded(marker.getLatLng()));
    handleLayers.eachLayer((other) => other !== marker && handleLayers.removeLayer(other));
  });
  marker.on("drag", () => {
    ring[index + 1] = rounded(marker.getLatLng());
    redraw(shape);
  });
  marker.on("dragend", () => edited(before));
}

// A rectangle stays a rectangle: both neighbouring corners move too, and it never becomes a line.
function moveCorner(ring, index, [x, y], isBox) {
  if (isBox) {
    const [oldX] = ring[index];
    const [farX, farY] = ring[(index + 2) % 4];
    if (x === farX || y === farY) return;
    for (const neighbour of [(index + 1) % 4, (index + 3) % 4]) {
      if (ring[neighbour][0] === oldX) ring[neighbour] = [x, ring[neighbour][1]];
      else ring[neighbour] = [ring[neighbour][0], y];
    }
  }
  ring[index] = [x, y];
}

function redraw(shape) {
  shape.layer.setLatLngs(shape.rings.map(latlngs));
  count();
}

function edited(before) {
  history.push(before);
  showShapes();
  count();
}

// --- loading and saving

async function load() {
  const answer = await ask("aoi");
  savedTag = answer.headers.get("ETag");
  shapes = answer.status === 204 ? [] : shapesOf(await answer.json());
  history = [];
  savedText = text();
  setMode("");
  showShapes();
  count();
  if (!shapes.length) return;
  // during an animation, clicks would be located on the map as it was before
  map.fitBounds(L.featureGroup(shapeLayers.getLayers()).getBounds().pad(0.15), { animate: false });
}

async function save() {
  const body = text();
  const condition = savedTag ? { "If-Match": savedTag } : { "If-None-Match": "*" };
  const headers = { "Content-Type": "application/geo+json", ...condition };
  saving = true;
  showStatus();
  try {
    const answer = await ask("aoi", { method: "PUT", headers, body });
    const result = await answer.json();
    if (answer.status === 412) {
      await settleConflict(result.error, answer.headers.get("ETag"));
      return;
    }
    savedTag = answer.headers.get("ETag");
    savedText = body;
    showError(null);
    $("recipe-line").textContent = `aoi: ${result.path}`;
    $("saved").hidden = false;
  } catch (error) {
    showError(error);
  } finally {
    saving = false;
    showStatus();
  }
}

async function settleConflict(problem, tag) {
  $("conflict-text").textContent = `${problem}, by another page or program. Load it, or overwrite it?`;
  const dialog = $("conflict");
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue === "reload") await load();
  if (dialog.returnValue === "overwrite") {
    savedTag = tag;
    await save();
  }
}

// --- the start

function describe(page) {
  $("dataset").textContent = `${page.dataset} ${page.year}: ${number(page.boxes)} chip boxes`;
  $("rule").textContent = `Recipe: ${page.rule}`;
  $("rich-label").textContent =
    page.min_classes > 1 ? `with ${page.min_classes} or more classes` : "with a class";
  $("chosen-key").hidden = !page.has_chosen;
  document.querySelector(".key.chosen").style.borderColor = page.chosen_colour;
  for (const shade of page.class_colours) {
    const step = document.createElement("span");
    step.style.background = shade;
    $("ramp").append(step);
  }
}

function keyed(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && mode) setMode("");
  // Enter must not press the focused button
  if (event.key === "Enter" && draft?.kind === "polygon") {
    event.preventDefault();
    finishPolygon();
  }
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
    event.preventDefault();
    undo();
  }
}

async function start() {
  $("error").querySelector("button").addEventListener("click", () => showError(null));
  try {
    const page = await (await ask("area.json")).json();
    describe(page);
    makeMap(page);
    for (const name of Object.keys(HINTS)) {
      $(name).addEventListener("click", () => setMode(mode === name ? "" : name));
    }
    $("undo").addEventListener("click", undo);
    $("clear").addEventListener("click", () => change([]));
    $("save").addEventListener("click", save);
    document.addEventListener("keydown", keyed);
    addEventListener("beforeunload", (event) => text() !== savedText && event.preventDefault());
    await load();
    // enabled only now, because loading replaces what is drawn
    for (const name of ["rectangle", "polygon"]) $(name).disabled = false;
  } catch (error) {
    setBusy(false);
    showError(error);
  }
}

start();
