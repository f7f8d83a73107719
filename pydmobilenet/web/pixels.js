// From a picture to the pixels that the network takes, as ../data/images.py makes them.

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
    const triangle = Array.from({ length: stop - start }, (_, x) =>
      Math.max(0, 1 - Math.abs((start + x - centre + 0.5) / support)));
    const sum = triangle.reduce((total, weight) => total + weight, 0);
    const weights = Int32Array.from(triangle, (weight) => Math.trunc((weight / sum) * (1 << BITS) + 0.5));
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

// Composite RGBA on white and drop the alpha, rounded as Pillow's AlphaComposite.c.
export function onWhite(rgba) {
  const rgb = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const alpha = rgba[from + 3];
    for (let i = 0; i < 3; i++) rgb[to++] = (rgba[from + i] * alpha + 255 * (255 - alpha)) / 255; // it rounds
  }
  return rgb;
}

// How much smaller `predict` decodes a JPEG: to an eighth, a quarter or a half, but at least twice `side`.
export function draftScale(width, height, side) {
  return [8, 4, 2].find((scale) => Math.min(width, height) >= 2 * scale * side) ?? 1;
}

// Average squares of RGB rows, those at the end smaller. So the JPEG library's smaller inverse transforms do
// (libjpeg-turbo, src/jidctred.c), but for the colours between its sparser samples.
export function average(rgb, width, scale) {
  if (scale === 1) return rgb;
  const rows = rgb.length / 3 / width;
  const columns = Math.ceil(width / scale);
  const result = new Uint8ClampedArray(Math.ceil(rows / scale) * columns * 3);
  for (let to = 0; to < result.length; to++) {
    const top = Math.floor(to / 3 / columns) * scale;
    const left = (Math.floor(to / 3) % columns) * scale;
    const [bottom, right] = [Math.min(top + scale, rows), Math.min(left + scale, width)];
    let sum = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) sum += rgb[(y * width + x) * 3 + (to % 3)];
    }
    result[to] = sum / ((bottom - top) * (right - left));
  }
  return result;
}

// Resize a picture to RGB (side, side, 3). `read(top, rows)` gives its RGBA in bands, as a canvas for all of a large
// one is more than phones allow. Throws for white ink on transparency, of which nothing would be left.
export async function toPixels(read, width, height, side, isJpeg) {
  const scale = isJpeg ? draftScale(width, height, side) : 1;
  const step = Math.max(1, Math.floor((1 << 20) / width / scale)) * scale;
  const narrow = new Uint8ClampedArray(Math.ceil(height / scale) * side * 3);
  let [least, most, white] = [255, 0, true];
  for (let top = 0; top < height; top += step) {
    const rgba = await read(top, Math.min(step, height - top));
    const rgb = onWhite(rgba);
    for (let i = 3; i < rgba.length; i += 4) {
      least = Math.min(least, rgba[i]);
      most = Math.max(most, rgba[i]);
    }
    white &&= rgb.every((value) => value === 255);
    const band = average(rgb, width, scale);
    narrow.set(resize(band, Math.ceil(width / scale), 3, side), (top / scale) * side * 3);
  }
  if (white && least < most) throw new Error("is drawn in white on transparency: give it a background");
  return resize(narrow, Math.ceil(height / scale), side * 3, side);
}

// Make RGB (32, 32, 3) of a drawing's ink (size, size), not empty, as the digits were made: cut out, fitted into 8x8
// cells, each the fraction of ink in 16 steps (Alpaydin and Kaynak, UCI, 1998, doi 10.24432/C50P49).
export function toDigit(ink, size) {
  const points = [...ink.keys()].filter((at) => ink[at] > 127).map((at) => [at % size, Math.floor(at / size)]);
  const lowest = [0, 1].map((axis) => points.reduce((least, point) => Math.min(least, point[axis]), size));
  const highest = [0, 1].map((axis) => points.reduce((most, point) => Math.max(most, point[axis] + 1), 0));
  const cell = Math.max(highest[0] - lowest[0], highest[1] - lowest[1]) / 8;
  const origin = [0, 1].map((axis) => (lowest[axis] + highest[axis]) / 2 - 4 * cell);
  const cells = new Float64Array(64);
  for (const point of points) {
    const [x, y] = point.map((value, axis) => Math.floor((value + 0.5 - origin[axis]) / cell));
    cells[8 * y + x] += 1 / cell ** 2;
  }
  const levels = cells.map((value) => Math.min(16, Math.round(16 * value)) * (255 / 16));
  const level = (at) => levels[8 * (at >> 7) + ((at % 32) >> 2)]; // each cell is 4x4 pixels
  return Uint8ClampedArray.from({ length: 32 * 32 * 3 }, (_, i) => level(Math.floor(i / 3)));
}

// Add an opaque alpha to RGB.
export function toRGBA(rgb) {
  const length = (rgb.length / 3) * 4;
  return Uint8ClampedArray.from({ length }, (_, i) => (i % 4 < 3 ? rgb[(i >> 2) * 3 + (i % 4)] : 255));
}

// Normalise RGB (side, side, 3) to (3, side, side) in float32, as `normalise` of ../data/dataset.py does.
export function normalise(rgb, mean, std) {
  const pixels = rgb.length / 3;
  return Float32Array.from(rgb, (_, i) => {
    const channel = Math.floor(i / pixels);
    return (rgb[(i % pixels) * 3 + channel] / 255 - mean[channel]) / std[channel];
  });
}

// Return [label, probability] of each class, the likeliest first.
export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power, label) => [label, power / sum]).sort((a, b) => b[1] - a[1]);
}
