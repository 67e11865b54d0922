// NiiVue with a drawing that is a byte a voxel. The server sends volumes whose axes NiiVue does not
// re-orient, so that drawBitmap has the order of the bytes that are sent and received.
import { Niivue, DRAG_MODE, NVImage } from "./niivue/niivue.js";

const COLOURS = [
  [230, 60, 60], [60, 160, 250], [70, 200, 90], [250, 190, 40], [190, 100, 240],
  [40, 210, 210], [250, 130, 190], [160, 110, 60], [150, 200, 40],
];
const MOST_UNDO = 30;
const PLANES = ["axial", "coronal", "sagittal"]; // as NiiVue numbers them
const DRAG = 150; // pixels of a drag that double the window, or move it by its width

export function colour(value) {
  return value ? COLOURS[(value - 1) % COLOURS.length] : [0, 0, 0];
}

export class Viewer {
  constructor(drawn) {
    this.depth = 0; // strokes that can be taken back
    this.onWindow = () => {};
    this.onMove = () => {}; // of the crosshair
    this.nv = new Niivue({
      dragAndDropEnabled: false, // would load other files
      loadingText: "",
      logLevel: "error",
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.9, 0.8, 0.2, 0.8],
      crosshairGap: 4,
      isRadiologicalConvention: true,
      isNearestInterpolation: true,
      multiplanarShowRender: 1, // always
      multiplanarForceRender: true,
      maxDrawUndoBitmaps: MOST_UNDO + 2,
      dragMode: DRAG_MODE.none, // of the right button: its windowing takes a pixel for a grey value
      clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
    });
    this.nv.keyDownListener = this.nv.keyUpListener = () => {}; // the page has keys of its own
    this.nv.onIntensityChange = () => this.onWindow();
    this.nv.onLocationChange = () => this.onMove();
    this.nv.onDrawingChanged = (action) => {
      if (action !== "draw" && action !== "undo") return;
      this.depth = action === "draw" ? Math.min(this.depth + 1, MOST_UNDO) : this.depth - 1;
      drawn();
    };
  }

  get canUndo() {
    return this.depth > 0;
  }

  async attach(canvas) {
    await this.nv.attachToCanvas(canvas);
    let began = null; // a drag with the right button
    canvas.addEventListener("mousedown", (event) => {
      if (event.button !== 2 || !this.nv.volumes.length) return;
      const [low, high] = this.window();
      began = { x: event.clientX, y: event.clientY, middle: (low + high) / 2, width: high - low };
    });
    addEventListener("mousemove", (event) => {
      if (!(event.buttons & 2)) began = null;
      if (began) this.drag(began, event.clientX - began.x, event.clientY - began.y);
    });
  }

  setPalette(entries) {
    const n = 1 + Math.max(...entries.map((entry) => entry.value));
    const colours = Array.from({ length: n }, (_, value) => colour(value));
    const labels = Array.from({ length: n }, () => "");
    for (const entry of entries) labels[entry.value] = entry.name;
    this.nv.setDrawColormap({
      R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
      A: colours.map((_, value) => (value ? 255 : 0)), labels: [],
    });
  }

  async load(imageUrl, drawing, uncertaintyUrl) {
    this.nv.setDrawingEnabled(false);
    if (this.nv.drawBitmap) this.nv.closeDrawing();
    const volumes = [{ url: imageUrl, name: "image.nii", colormap: "gray" }];
    if (uncertaintyUrl) volumes.push({ url: uncertaintyUrl, name: "uncertainty.nii", colormap: "warm", opacity: 0 });
    await this.nv.loadVolumes(volumes);
    this.nv.setCrosshairWidth(Math.max(...this.nv.back.dims.slice(1, 4)) / 180); // in voxels
    this.nv.createEmptyDrawing();
    if (drawing.length && this.nv.drawBitmap.length !== drawing.length) throw new Error("the drawing does not fit to the image");
    this.nv.drawBitmap.set(drawing);
    this.nv.drawClearAllUndoBitmaps();
    this.nv.drawAddUndoBitmap();
    this.nv.refreshDrawing(true);
    this.depth = 0;
  }

  // Another channel, beneath the same drawing.
  async setImage(url) {
    const shown = this.nv.volumes[0];
    const volume = await NVImage.loadFromUrl({ url, name: "image.nii", colormap: "gray" });
    shown.img = volume.img;
    for (const field of ["cal_min", "cal_max", "global_min", "global_max", "robust_min", "robust_max", "hdr"]) shown[field] = volume[field];
    this.nv.updateGLVolume();
  }

  // What is drawn, in place of what was drawn before.
  show(drawing) {
    this.nv.drawBitmap.set(drawing);
    this.nv.refreshDrawing(true);
  }

  lookAt(voxel) {
    this.nv.scene.crosshairPos = this.nv.vox2frac(voxel);
    this.nv.drawScene();
  }

  setTool(tool, value, size) {
    this.nv.setDrawingEnabled(tool !== "look" && this.nv.volumes.length > 0);
    this.nv.opts.penSize = tool === "fill" ? 1 : size;
    this.nv.setPenValue(tool === "erase" ? 0 : value, tool === "fill");
  }

  undo() {
    this.nv.drawUndo();
  }

  // Everything that is drawn, as one stroke that can be taken back.
  clear() {
    if (!this.nv.drawBitmap.some((value) => value)) return;
    this.nv.drawBitmap.fill(0);
    this.nv.drawAddUndoBitmap();
    this.nv.refreshDrawing(true);
    this.nv.onDrawingChanged("draw");
  }

  setDrawingOpacity(opacity) {
    this.nv.setDrawOpacity(opacity);
  }

  setUncertainty(opacity) {
    if (this.nv.volumes.length > 1) this.nv.setOpacity(1, opacity);
  }

  setView(type) {
    this.nv.setSliceType(type);
  }

  slice(by) {
    const step = { 1: [0, by, 0], 2: [by, 0, 0] }[this.nv.opts.sliceType] || [0, 0, by];
    this.nv.moveCrosshairInVox(...step);
  }

  // Which slice is shown of how many, of each plane that is; the 3D view has none.
  sliceText() {
    const type = this.nv.opts.sliceType, voxel = this.nv.frac2vox(this.nv.scene.crosshairPos);
    const shown = PLANES[type] ? [type] : type === 3 ? [0, 1, 2] : [];
    return shown.map((plane) => `${PLANES[plane]} ${voxel[2 - plane] + 1} / ${this.nv.back.dims[3 - plane]}`).join(" · ");
  }

  window() {
    const { cal_min, cal_max } = this.nv.volumes[0];
    return [cal_min, cal_max];
  }

  setWindow(low, high) {
    if (!(low < high)) return;
    Object.assign(this.nv.volumes[0], { cal_min: low, cal_max: high });
    this.nv.updateGLVolume();
  }

  // To the right: a wider window; up: a higher one, whatever the range of the image is.
  drag(began, right, down) {
    const middle = began.middle - (down / DRAG) * began.width;
    const half = (began.width * 2 ** (right / DRAG)) / 2;
    this.setWindow(middle - half, middle + half);
    this.onWindow();
  }

  counts() {
    const counts = new Array(256).fill(0);
    for (const value of this.nv.drawBitmap) counts[value]++;
    return counts;
  }

  // The drawing as the server takes it: gzip of a byte a voxel.
  async drawing() {
    const stream = new Blob([this.nv.drawBitmap]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
}
