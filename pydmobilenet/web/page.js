// The page: it loads the network and ONNX Runtime, takes pictures, and shows the likeliest classes. All names are set
// as text, never as HTML.

import { normalise, softmax, toDigit, toPixels, toRGBA } from "./pixels.js";

const TOP = 3;
const $ = (id) => document.getElementById(id);
let [labels, ort, session] = [];

// Fetch a file as bytes; one with another content than its `integrity` is refused.
async function load(url, integrity) {
  const answer = await fetch(url, integrity ? { integrity } : {});
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

async function start() {
  const { script, wasm } = JSON.parse($("runtime").textContent);
  const files = [load("labels.json"), load("net.onnx"), load(...script), load(...wasm)];
  const [text, net, code, binary] = await Promise.all(files);
  labels = JSON.parse(new TextDecoder().decode(text));
  // Imported by its URL, the script would be fetched again, and not compared with its hash by every browser.
  ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  Object.assign(ort.env.wasm, { wasmBinary: binary, numThreads: 1 });
  session = await ort.InferenceSession.create(new Uint8Array(net), { executionProviders: ["wasm"] });
  await run(new Uint8ClampedArray(labels.image_size ** 2 * 3)); // the first run is slower than those after it
  const size = `${labels.image_size}x${labels.image_size} pixels`;
  const numbers = `${labels.parameters.toLocaleString("en")} parameters, ${(net.byteLength / 1e6).toFixed(2)} MB`;
  $("about").textContent = `${labels.classes.length} classes, ${size}, ${numbers}`;
  $("status").textContent = `Ready after ${(performance.now() / 1000).toFixed(1)} s.`;
}

async function run(rgb) {
  const { image_size: side, mean, std } = labels;
  const images = new ort.Tensor("float32", normalise(rgb, mean, std), [1, 3, side, side]);
  return softmax((await session.run({ images })).logits.data);
}

// The RGB that the network sees of a bitmap or of a frame of the camera.
function pixels(image, width, height, isJpeg) {
  const canvas = new OffscreenCanvas(width, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  const read = async (top, rows) => {
    await new Promise((done) => setTimeout(done)); // the page stays alive between the bands
    if (canvas.height === rows) context.clearRect(0, 0, width, rows);
    else canvas.height = rows;
    context.drawImage(image, 0, -top);
    return context.getImageData(0, 0, width, rows).data;
  };
  return toPixels(read, width, height, labels.image_size, isJpeg);
}

async function decode(file) {
  const head = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  const isJpeg = labels.decoding === "draft" && head.join() === "255,216,255";
  // Colour profiles are ignored as by `predict`; EXIF's orientation is followed.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error("cannot be read as a picture by this browser");
  });
  try {
    return await pixels(bitmap, bitmap.width, bitmap.height, isJpeg);
  } finally {
    bitmap.close();
  }
}

function newCard(name) {
  const card = $("card").content.cloneNode(true).firstElementChild;
  card.querySelector("h2").textContent = name;
  $("results").prepend(card);
  return card;
}

let queue = Promise.resolve(); // a session computes one picture at a time

// Classify what `see` returns, after all that was asked for before, and show it on a card.
function classify(card, see) {
  queue = queue.then(async () => {
    const note = card.querySelector("p");
    try {
      const rgb = await see();
      const begin = performance.now();
      const classes = await run(rgb);
      note.textContent = `${(performance.now() - begin).toFixed(1)} ms`;
      note.className = "";
      show(card, rgb, classes);
    } catch (error) {
      note.textContent = error.message;
      note.className = "bad";
    }
  });
  return queue;
}

function show(card, rgb, classes) {
  const side = labels.image_size;
  const canvas = card.querySelector("canvas");
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(new ImageData(toRGBA(rgb), side, side), 0, 0);
  const rows = classes.slice(0, TOP).map(([label, probability]) => {
    const [row, bar, name, text] = ["li", "span", "bdi", "span"].map((tag) => document.createElement(tag));
    bar.style.width = `${100 * probability}%`;
    name.textContent = name.title = labels.classes[label];
    text.textContent = `${(100 * probability).toFixed(1)} %`;
    row.append(bar, name, text);
    return row;
  });
  card.querySelector("ol").replaceChildren(...rows);
}

function takeFiles(files) {
  for (const file of files) classify(newCard(file.name), () => decode(file));
}

function takeDrops() {
  $("files").onchange = (event) => {
    takeFiles(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  };
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    takeFiles(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => takeFiles(event.clipboardData.files));
}

function takeCamera() {
  const [button, video] = [$("camera"), $("video")];
  if (!navigator.mediaDevices) {
    Object.assign(button, { disabled: true, title: "Browsers give the camera to https:// and localhost alone" });
    return;
  }
  let card;
  const frame = async () => {
    if (!video.srcObject) return;
    await classify(card, () => pixels(video, video.videoWidth, video.videoHeight, false));
    requestAnimationFrame(frame);
  };
  button.onclick = async () => {
    const on = !video.srcObject;
    try {
      if (on) {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        await video.play();
        card ??= newCard("Camera");
        frame();
      } else {
        video.srcObject.getTracks().forEach((track) => track.stop());
        video.srcObject = null;
      }
    } catch (error) {
      $("status").textContent = `The camera cannot be used: ${error.message}`;
    }
    video.hidden = !video.srcObject;
    button.setAttribute("aria-pressed", String(!video.hidden));
  };
}

function takeDrawing() {
  const canvas = $("ink");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: 28, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
  let card;
  let last = null;
  const draw = (event) => {
    if (!last) return;
    const scale = canvas.width / canvas.clientWidth;
    const point = [event.offsetX * scale, event.offsetY * scale];
    context.beginPath();
    context.moveTo(...(last.length ? last : point));
    context.lineTo(...point);
    context.stroke();
    last = point;
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = [];
    draw(event);
  };
  canvas.onpointermove = draw;
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (!last) return;
    last = null;
    const ink = context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 3);
    const digit = toRGBA(toDigit(ink, canvas.width));
    card ??= newCard("Your drawing");
    classify(card, () => toPixels(() => digit, 32, 32, labels.image_size, false));
  };
  $("clear").onclick = () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    card?.remove();
    card = undefined;
  };
}

start().then(
  () => {
    takeDrops();
    takeCamera();
    if ($("ink")) takeDrawing();
  },
  (error) => {
    $("status").textContent = `The network cannot be loaded: ${error.message}`;
    $("status").className = "bad";
  },
);
