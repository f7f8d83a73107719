// From a picture to the pixels that the network takes, as ../data/images.py makes them. Pixels are RGBA in bytes.

const BITS = 22; // PRECISION_BITS of Pillow's src/libImaging/Resample.c

// Resize the middle axis of bytes (outer, size, inner) to `side`. It is Pillow's bilinear filter, which weights all
// pixels below a triangle: `precompute_coeffs`, `normalize_coeffs_8bpc` and `ImagingResampleHorizontal_8bpc` there.
export function resize(bytes, size, inner, side) {
  const outer = bytes.length / size / inner;
  const result = new Uint8ClampedArray(outer * side * inner);
  const scale = size / side;
  const support = Math.max(scale, 1);
  for (let to = 0; to < side; to++) {
    const centre = (to + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const stop = Math.min(Math.trunc(centre + support + 0.5), size);
    const distance = (x) => Math.abs((start + x - centre + 0.5) / support);
    const triangle = Float64Array.from({ length: stop - start }, (_, x) => Math.max(0, 1 - distance(x)));
    const sum = triangle.reduce((total, weight) => total + weight);
    const weights = Int32Array.from(triangle, (weight) => (weight / sum) * (1 << BITS) + 0.5); // it truncates
    for (let row = 0; row < outer; row++) {
      for (let i = 0; i < inner; i++) {
        let total = 1 << (BITS - 1);
        let from = (row * size + start) * inner + i;
        for (let x = 0; x < weights.length; x++, from += inner) total += weights[x] * bytes[from];
        result[(row * side + to) * inner + i] = total >> BITS;
      }
    }
  }
  return result;
}

// Average squares of pixels, smaller ones at the right and the bottom. So the JPEG library's smaller inverse transforms
// do (libjpeg-turbo, src/jidctred.c), though it takes the colours as sparsely as the file has them.
function average(rgba, width, scale) {
  if (scale === 1) return rgba;
  const [rows, columns] = [rgba.length / 4 / width, Math.ceil(width / scale)];
  const result = new Uint8ClampedArray(Math.ceil(rows / scale) * columns * 4);
  for (let to = 0; to < result.length; to++) {
    const [top, left] = [Math.floor(to / 4 / columns) * scale, (Math.floor(to / 4) % columns) * scale];
    const [bottom, right] = [Math.min(top + scale, rows), Math.min(left + scale, width)];
    let sum = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) sum += rgba[(y * width + x) * 4 + (to % 4)];
    }
    result[to] = sum / ((bottom - top) * (right - left)); // it rounds
  }
  return result;
}

// Resize a picture to (side, side). `read(top, rows)` returns a band of it: of a large one, phones allow no canvas for
// all. A JPEG is averaged first if `predict` decodes it so much smaller, to at least twice the side. Throws for white
// ink on transparency, as it would vanish on white.
export async function toPixels(read, width, height, side, isJpeg) {
  const scale = (isJpeg && [8, 4, 2].find((times) => Math.min(width, height) >= 2 * times * side)) || 1;
  const step = Math.max(1, Math.floor((1 << 20) / width / scale)) * scale;
  const narrow = new Uint8ClampedArray(Math.ceil(height / scale) * side * 4);
  let [least, most] = [255, 0];
  for (let top = 0; top < height; top += step) {
    const rgba = await read(top, Math.min(step, height - top));
    for (let i = 3; i < rgba.length; i += 4) {
      const alpha = rgba[i];
      least = Math.min(least, alpha);
      most = Math.max(most, alpha);
      if (alpha === 255) continue;
      for (let j = i - 3; j < i; j++) rgba[j] = 255 - ((255 - rgba[j]) * alpha) / 255; // it rounds
      rgba[i] = 255;
    }
    narrow.set(resize(average(rgba, width, scale), Math.ceil(width / scale), 4, side), (top / scale) * side * 4);
  }
  if (least < most && narrow.every((value) => value === 255)) {
    throw new Error("is drawn in white on transparency: give it a background");
  }
  return resize(narrow, Math.ceil(height / scale), side * 4, side);
}

// Make (32, 32) of a drawing's opacity (size, size), not empty, as the digits were made: cut out, fitted into 8x8
// cells, each the fraction of ink in 16 steps (Alpaydin and Kaynak, UCI, 1998, doi 10.24432/C50P49).
export function toDigit(ink, size) {
  const points = [...ink.keys()].filter((at) => ink[at] > 127).map((at) => [at % size, Math.floor(at / size)]);
  const lowest = [0, 1].map((axis) => points.reduce((least, point) => Math.min(least, point[axis]), size));
  const highest = [0, 1].map((axis) => points.reduce((most, point) => Math.max(most, point[axis] + 1), 0));
  const cell = Math.max(highest[0] - lowest[0], highest[1] - lowest[1]) / 8;
  const inked = new Float64Array(64);
  for (const point of points) {
    const [x, y] = point.map((at, axis) => Math.floor((at + 0.5 - (lowest[axis] + highest[axis]) / 2) / cell + 4));
    inked[8 * y + x] += 1 / cell ** 2;
  }
  const levels = inked.map((fraction) => Math.min(16, Math.round(16 * fraction)) * (255 / 16));
  const level = (at) => levels[8 * (at >> 7) + ((at % 32) >> 2)]; // each cell is 4x4 pixels
  return Uint8ClampedArray.from({ length: 32 * 32 * 4 }, (_, i) => (i % 4 < 3 ? level(i >> 2) : 255));
}

// Normalise (side, side) to (3, side, side) in float32.
export function normalise(rgba, mean, std) {
  const pixels = rgba.length / 4;
  return Float32Array.from({ length: 3 * pixels }, (_, i) => {
    const channel = Math.floor(i / pixels);
    return (rgba[(i % pixels) * 4 + channel] / 255 - mean[channel]) / std[channel];
  });
}

// Return [label, probability] of each class, the likeliest first.
export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((total, power) => total + power);
  return powers.map((power, label) => [label, power / sum]).sort((a, b) => b[1] - a[1]);
}
