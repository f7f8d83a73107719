// Load the network and ONNX Runtime, take pictures, show the likeliest classes. Names are set as text, never as HTML.

import { normalise, softmax, toDigit, toPixels } from "./pixels.js";

const TOP = 3;
const $ = (id) => document.getElementById(id);
const make = (tag, values) => Object.assign(document.createElement(tag), values);
let [labels, ort, session] = [];

// Fetch a file as bytes. The browser refuses content of another `integrity`.
async function load(url, integrity = "") {
  const answer = await fetch(url, { integrity }).catch(() => {
    throw new Error(`${url} is not reachable, or another file than expected`);
  });
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

async function start() {
  const { script, wasm } = JSON.parse($("runtime").textContent);
  const urls = [["labels.json"], ["net.onnx"], script, wasm];
  const [text, net, code, wasmBinary] = await Promise.all(urls.map((url) => load(...url)));
  labels = JSON.parse(new TextDecoder().decode(text));
  // An import by URL would fetch the script again, and not every browser would compare its hash.
  ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  Object.assign(ort.env.wasm, { wasmBinary, numThreads: 1 }); // threads need headers that few servers send
  const probe = new OffscreenCanvas(16, 16).getContext("2d");
  probe.fillRect(0, 0, 16, 16);
  if (probe.getImageData(0, 0, 16, 16).data.some((value, i) => value !== (i % 4 < 3 ? 0 : 255))) {
    throw new Error("this browser gives pages other pixels than those of a picture, against tracking: allow them here");
  }
  session = await ort.InferenceSession.create(new Uint8Array(net), { executionProviders: ["wasm"] });
  const side = labels.image_size;
  await run(new Uint8ClampedArray(side ** 2 * 4)); // the first run takes longer than those after it
  const counts = `${labels.classes.length} classes, ${labels.parameters.toLocaleString("en")} parameters`;
  $("about").textContent = `${counts}, ${(net.byteLength / 1e6).toFixed(2)} MB, ${side}x${side} pixels`;
  $("status").textContent = `Ready after ${(performance.now() / 1000).toFixed(1)} s`;
}

// Return the pixels that the network sees of a file, or of a video's frame.
async function see(source) {
  const head = source instanceof Blob ? new Uint8Array(await source.slice(0, 3).arrayBuffer()) : [];
  const isJpeg = labels.decoding === "draft" && head.join() === "255,216,255";
  // As for `predict`, colour profiles are ignored, and a picture is upright by EXIF.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(source, options).catch(() => {
    throw new Error("cannot be read as a picture by this browser");
  });
  const canvas = new OffscreenCanvas(bitmap.width, 1);
  const read = async (top, rows) => {
    await new Promise((done) => setTimeout(done)); // the page stays alive between the bands
    canvas.height = rows; // this clears it
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, canvas.width, rows).data;
  };
  return toPixels(read, bitmap.width, bitmap.height, labels.image_size, isJpeg).finally(() => bitmap.close());
}

async function run(rgba) {
  const { image_size: side, mean, std } = labels;
  const images = new ort.Tensor("float32", normalise(rgba, mean, std), [1, 3, side, side]);
  return softmax((await session.run({ images })).logits.data);
}

let queue = Promise.resolve(); // a session computes one picture at a time

// Classify the pixels that `look` promises, once all earlier ones are done, and show a card of this name on top.
function classify(name, look, card = $("card").content.firstElementChild.cloneNode(true)) {
  card.querySelector("h2").textContent = name;
  if (card !== $("results").firstElementChild) $("results").prepend(card);
  queue = queue.then(look).then(async (rgba) => {
    const begin = performance.now();
    const classes = await run(rgba);
    card.querySelector("p").textContent = `${(performance.now() - begin).toFixed(1)} ms`;
    card.querySelector("ol").replaceChildren(...classes.slice(0, TOP).map(row));
    const canvas = Object.assign(card.querySelector("canvas"), { width: labels.image_size, height: labels.image_size });
    canvas.getContext("2d").putImageData(new ImageData(rgba, canvas.width), 0, 0);
  });
  queue = queue.catch((error) => card.querySelector("p").replaceChildren(make("em", { textContent: error.message })));
  return [card, queue];
}

function row([label, probability]) {
  const [name, percent] = [labels.classes[label], `${(100 * probability).toFixed(1)} %`];
  const bar = make("span");
  bar.style.width = `${100 * probability}%`;
  const item = make("li");
  item.append(bar, make("bdi", { textContent: name, title: name }), make("span", { textContent: percent }));
  return item;
}

function takeFiles(event, files) {
  event.preventDefault();
  for (const file of files) classify(file.name, () => see(file));
}

function listen() {
  $("files").onchange = (event) => {
    takeFiles(event, event.target.files);
    event.target.value = ""; // the same file may be chosen again
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => takeFiles(event, event.dataTransfer.files);
  document.onpaste = (event) => takeFiles(event, event.clipboardData.files);
  if (navigator.mediaDevices) $("camera").onclick = toggleCamera;
  else Object.assign($("camera"), { disabled: true, title: "Browsers give the camera to https and localhost alone" });
  if ($("ink")) takeDrawings($("ink"));
}

async function toggleCamera() {
  $("camera").onclick = null; // a second stream could not be stopped
  const video = $("video");
  const stream = video.srcObject;
  stream?.getTracks().forEach((track) => track.stop());
  try {
    video.srcObject = stream ? null : await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (!stream) await video.play();
  } catch (error) {
    $("status").textContent = `The camera cannot be used: ${error.message}`;
  }
  video.hidden = !video.srcObject;
  $("camera").setAttribute("aria-pressed", String(!video.hidden));
  $("camera").onclick = toggleCamera;
  watch(video);
}

async function watch(video) {
  let [card, done] = [];
  while (video.srcObject) {
    [card, done] = classify("Camera", () => see(video), card);
    card.setAttribute("aria-live", "off"); // no words for each frame
    await done;
  }
}

function takeDrawings(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: 28, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
  let card;
  const draw = ({ offsetX, offsetY }) => {
    const point = [offsetX, offsetY].map((at) => (at * canvas.width) / canvas.clientWidth);
    context.lineTo(...point);
    context.stroke();
    context.beginPath();
    context.moveTo(...point);
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    context.beginPath();
    draw(event);
    draw(event); // a dot
    canvas.onpointermove = draw;
  };
  canvas.onlostpointercapture = () => {
    canvas.onpointermove = null;
    const ink = context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 3);
    const digit = toDigit(ink, canvas.width);
    [card] = classify("Your drawing", () => toPixels(() => digit, 32, 32, labels.image_size, false), card);
  };
  $("clear").onclick = () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    card?.remove();
  };
}

start().then(listen).catch((error) => {
  $("status").replaceChildren(make("em", { textContent: `The network cannot be loaded: ${error.message}` }));
});
