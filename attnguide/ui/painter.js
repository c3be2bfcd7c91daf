// Boxes by mouse and masks by brush over a picture, one layer a phrase. Runs once when the component is loaded, with `element`,
// `props`, `watch`. `props.value` is JSON: {"regions": [{"phrase", "box"} | {"phrase", "mask": data URL} | {"phrase"}]}, lowest layer first.
const SIDE = 448, MASK = 128;
const root = document.createElement("div");
root.className = "painter";
root.innerHTML = `
  <div class="bar words" role="listbox" aria-label="Words of the prompt"></div>
  <div class="bar tools">
    <button type="button" data-tool="box">box</button>
    <button type="button" data-tool="brush">brush</button>
    <button type="button" data-tool="eraser">eraser</button>
    <label>size <input type="range" class="size" min="2" max="64" value="24"></label>
    <label>softness <input type="range" class="soft" min="0" max="100" value="50"></label>
  </div>
  <canvas width="${SIDE}" height="${SIDE}" tabindex="0" aria-label="Where each word should be"></canvas>
  <ol class="layers"></ol>`;
const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
const layers = [];  // {phrase, box: [x0, y0, x1, y1] or null, mask: canvas or null, painted}
let current = null, tool = "box", start = null, last = null, background = null, sent = "";

const ink = (phrase, alpha = 1) => {  // Python says each phrase's colour, so that it is the same on every picture
  const [red, green, blue] = (props.inks || {})[phrase] || [90, 90, 90];
  return `rgba(${red},${green},${blue},${alpha})`;
};
const attach = () => { if (!element.contains(root)) element.appendChild(root); };
const layer = () => layers.find((one) => one.phrase === current);
const place = (event) => {
  const area = canvas.getBoundingClientRect();
  const clip = (value) => Math.min(1, Math.max(0, value));
  return [clip((event.clientX - area.left) / area.width), clip((event.clientY - area.top) / area.height)];
};
const number = (value) => Math.round(value * 1000) / 1000;

function send() {
  const regions = layers.map((one) => {
    if (one.painted) return {phrase: one.phrase, mask: one.mask.toDataURL("image/png")};
    return one.box ? {phrase: one.phrase, box: one.box.map(number)} : {phrase: one.phrase};
  });
  sent = JSON.stringify({regions});
  props.value = sent;
  attach();
}

function choose(phrase) {
  current = phrase;
  if (!layer()) layers.push({phrase, box: null, mask: null, painted: false});
  show();
}

function maskOf(one) {
  if (!one.mask) {
    one.mask = document.createElement("canvas");
    one.mask.width = one.mask.height = MASK;
    const paint = one.mask.getContext("2d");
    paint.fillStyle = "black";
    paint.fillRect(0, 0, MASK, MASK);
    if (one.box) {  // a brush goes on from the box
      const [x0, y0, x1, y1] = one.box.map((edge) => edge * MASK);
      paint.fillStyle = "white";
      paint.fillRect(x0, y0, x1 - x0, y1 - y0);
    }
  }
  return one.mask;
}

function stroke(from, to) {
  const one = layer(), paint = maskOf(one).getContext("2d");
  const radius = (root.querySelector(".size").value / 2) * (MASK / 128), hard = 1 - root.querySelector(".soft").value / 100;
  const tone = tool === "brush" ? "255,255,255" : "0,0,0";
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * MASK / Math.max(1, radius / 4)));
  for (let step = 0; step <= steps; step++) {
    const x = (from[0] + (to[0] - from[0]) * step / steps) * MASK, y = (from[1] + (to[1] - from[1]) * step / steps) * MASK;
    const dab = paint.createRadialGradient(x, y, radius * hard * 0.99, x, y, radius);
    dab.addColorStop(0, `rgba(${tone},1)`);
    dab.addColorStop(1, `rgba(${tone},0)`);
    paint.fillStyle = dab;
    paint.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
  }
  one.painted = true;
  one.box = null;
}

function tinted(one) {  // the mask as its phrase's colour, as opaque as the mask is white
  const copy = document.createElement("canvas");
  copy.width = copy.height = MASK;
  const paint = copy.getContext("2d"), pixels = one.mask.getContext("2d").getImageData(0, 0, MASK, MASK);
  const [red, green, blue] = (props.inks || {})[one.phrase] || [90, 90, 90];
  for (let at = 0; at < pixels.data.length; at += 4) {
    const white = pixels.data[at];
    pixels.data.set([red, green, blue, white * 0.6], at);
  }
  paint.putImageData(pixels, 0, 0);
  return copy;
}

function draw() {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (background) pen.drawImage(background, 0, 0, canvas.width, canvas.height);
  for (const one of layers) {
    if (one.painted) pen.drawImage(tinted(one), 0, 0, canvas.width, canvas.height);
    if (one.box) {
      const [x0, y0, x1, y1] = one.box, [w, h] = [canvas.width, canvas.height];
      pen.fillStyle = ink(one.phrase, 0.25);
      pen.fillRect(x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h);
      const thick = one.phrase === current ? 4 : 2;
      for (const [tone, width] of [["white", thick + 2], [ink(one.phrase), thick]]) {  // edged, to show on an object of its colour
        pen.strokeStyle = tone;
        pen.lineWidth = width;
        pen.strokeRect(x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h);
      }
      pen.font = "14px sans-serif";
      pen.fillStyle = ink(one.phrase);
      pen.fillRect(x0 * w, y0 * h, pen.measureText(one.phrase).width + 8, 20);
      pen.fillStyle = "white";
      pen.fillText(one.phrase, x0 * w + 4, y0 * h + 15);
    }
  }
}

function button(text, title, act, parent) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = title;
  made.addEventListener("click", act);
  parent.appendChild(made);
  return made;
}

function show() {
  const words = root.querySelector(".words"), list = root.querySelector(".layers");
  words.replaceChildren();
  for (const phrase of props.words || []) {
    const made = button(phrase, "draw where this is", () => choose(phrase), words);
    made.dataset.phrase = phrase;
    made.setAttribute("aria-selected", phrase === current);
    made.style.borderBottomColor = ink(phrase);
    if (layers.some((one) => one.phrase === phrase)) made.style.borderColor = ink(phrase);
  }
  root.querySelectorAll("[data-tool]").forEach((made) => made.setAttribute("aria-pressed", made.dataset.tool === tool));
  list.replaceChildren();
  [...layers].reverse().forEach((one) => {
    const item = document.createElement("li"), at = layers.indexOf(one);
    item.style.borderColor = ink(one.phrase);
    item.append(`${one.phrase}: ${one.painted ? "mask" : one.box ? "box" : "no place yet"} `);
    const move = (by) => () => { layers.splice(at, 1); layers.splice(at + by, 0, one); show(); send(); };
    if (at < layers.length - 1) button("\u2191", "up", move(1), item);
    if (at > 0) button("\u2193", "down", move(-1), item);
    button("\u2715", "remove", () => { layers.splice(at, 1); if (current === one.phrase) current = null; show(); send(); }, item);
    list.appendChild(item);
  });
  draw();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!current) choose((props.words || [])[0]);
  if (!current) return;
  canvas.setPointerCapture(event.pointerId);
  start = last = place(event);
  if (tool !== "box") { stroke(start, start); draw(); }
});
canvas.addEventListener("pointermove", (event) => {
  if (!start) return;
  const now = place(event);
  if (tool === "box") {
    const one = layer();
    one.box = [Math.min(start[0], now[0]), Math.min(start[1], now[1]), Math.max(start[0], now[0]), Math.max(start[1], now[1])];
    one.painted = false;
    one.mask = null;
  } else stroke(last, now);
  last = now;
  draw();
});
const end = () => {
  if (!start) return;
  const one = layer();
  if (tool === "box" && one.box && (one.box[2] - one.box[0] < 0.02 || one.box[3] - one.box[1] < 0.02)) one.box = null;
  start = null;
  show();
  send();
};
canvas.addEventListener("pointerup", end);
canvas.addEventListener("pointercancel", end);
root.querySelectorAll("[data-tool]").forEach((made) => made.addEventListener("click", () => { tool = made.dataset.tool; show(); }));

function loaded() {  // what Python says: other words, another picture, regions from a file
  attach();
  if (props.value && props.value !== sent) {
    sent = props.value;
    layers.length = 0;
    for (const region of JSON.parse(props.value).regions || []) {
      const one = {phrase: region.phrase, box: region.box || null, mask: null, painted: false};
      layers.push(one);
      if (region.mask) {
        const image = new Image();
        image.onload = () => { maskOf(one).getContext("2d").drawImage(image, 0, 0, MASK, MASK); one.painted = true; draw(); };
        image.src = region.mask;
      }
    }
    current = layers.length ? layers[0].phrase : null;
  }
  root.picture = props.background;
  if (props.background) {
    const image = new Image();
    image.onload = () => {
      background = image;
      canvas.height = Math.round(SIDE * image.height / image.width);
      draw();
    };
    image.src = props.background;
  } else background = null;
  show();
}
new MutationObserver(attach).observe(element, {childList: true, subtree: true});
watch(["value", "words", "inks", "background"], loaded);
loaded();
