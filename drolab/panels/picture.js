// A figure that Plotly.react draws from what Python keeps: `content`, and the edits to it (zoom, hidden legend entries,
// outlines, a path), each a path into the content and a value. Python sends what differs; views follow.

const HEIGHT = 450;  // where the layout has none
const LARGEST = 130_000;  // characters of a picture that is kept: 100 kB
const loaded = (globalThis.drolabPlotly ??= new Map());  // version → plotly.js, once for all figures of a page

const library = async (model) => {
  const id = model.get("_library").replace("IPY_MODEL_", "");
  let holder;
  for (let tries = 0; !holder && tries < 200; tries++) {  // after a reload it may come later than the figure
    holder = await Promise.resolve().then(() => model.widget_manager.get_model(id)).catch(() => undefined);
    if (!holder) await new Promise(resolve => setTimeout(resolve, 50));
  }
  const version = holder.get("version");
  if (!loaded.has(version)) {
    const parts = ["const module = { exports: {} };\n", holder.get("code"), "\nexport default module.exports;"];
    loaded.set(version, import(URL.createObjectURL(new Blob(parts, { type: "text/javascript" }))));
  }
  return (await loaded.get(version)).default;
};

const unpacked = (part, buffers) => {
  if (Array.isArray(part)) return part.map(one => unpacked(one, buffers));
  if (part === null || typeof part !== "object") return part;
  if (!part.$array) return Object.fromEntries(Object.entries(part).map(([name, one]) => [name, unpacked(one, buffers)]));
  const [number, kind, rows, columns] = part.$array;
  const { buffer, byteOffset, byteLength } = buffers[number];
  const flat = new { f4: Float32Array, f8: Float64Array }[kind](buffer.slice(byteOffset, byteOffset + byteLength));
  if (columns === undefined) return flat;
  return Array.from({ length: rows }, (_, row) => flat.subarray(row * columns, (row + 1) * columns));
};

const put = (content, path, value) => {
  const place = path.slice(0, -1).reduce((part, name) => (part[name] ??= {}), content);
  if (value.length) place[path.at(-1)] = value[0];
  else if (Array.isArray(place)) place.splice(path.at(-1), 1);
  else delete place[path.at(-1)];
};

// plotly.js writes into what it is given, but for the data's arrays, which it knows by their identity.
const writable = (part) => {
  if (part === null || typeof part !== "object" || Array.isArray(part) || ArrayBuffer.isView(part)) return part;
  return Object.fromEntries(Object.entries(part).map(([name, one]) => [name, writable(one)]));
};

// JupyterLab and Notebook say on the page what their theme is; elsewhere it is the system's.
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => {
  const light = document.body.dataset.jpThemeLight;
  return light === undefined ? system.matches : light === "false";
};
const whenTheme = (changed, signal) => {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  signal.addEventListener("abort", () => observer.disconnect());
  system.addEventListener("change", changed, { signal });
};

const recoloured = new WeakMap();  // plotly.js knows a list by its identity

const recolour = (part, colors) => {
  for (const [name, value] of Object.entries(part)) {
    if (value === null || ArrayBuffer.isView(value)) continue;
    if (Array.isArray(value)) {
      if (/color/.test(name)) part[name] = otherList(value, colors);
      else value.forEach(one => one !== null && one?.constructor === Object && recolour(one, colors));
    } else if (typeof value === "object") recolour(value, colors);
    else if (/color/.test(name)) part[name] = colors[value] ?? value;
  }
};

const otherList = (list, colors) => {
  if (!recoloured.has(list))
    recoloured.set(list, list.map(one => Array.isArray(one) ? otherList(one, colors) : colors[one] ?? one));
  return recoloured.get(list);
};

// plotly.js finds a range anew only for other data: the one it found last is to stand in the layout that it is given.
const keepRanges = (last, layout) => {
  for (const [name, { range, autorange }] of Object.entries(last ?? {}).filter(([name]) => /^.axis\d*$/.test(name)))
    if (autorange && !layout[name]?.range) layout[name] = { range, autorange, ...layout[name] };
};

// What an event of plotly.js says has changed, lists as a whole, and a range with what else an axis knows of it.
const editsOf = (figure, event) => Object.keys(event).flatMap((name) => {
  const path = ["layout", ...name.split("[")[0].split(".")];
  const last = path.pop(), names = /^(auto)?range$/.test(last) ? ["range", "autorange"] : [last];
  const part = path.reduce((part, name) => part[name], figure);
  return names.map(name => [[...path, name], part[name]]);
});

// JupyterLab takes an arrow key in a list for the way to another cell, unless the control says that it wants its keys.
const CONTROLS = "select, button, .noUi-handle, input[type=checkbox], summary";

const keepKeys = (place) => {
  for (const control of place.closest(".jp-OutputArea-output")?.querySelectorAll(CONTROLS) ?? [])
    control.setAttribute("data-lm-suppress-shortcuts", "true");
};

// A page that is busy for two seconds when a figure comes is given up by anywidget 0.11: it hands on no message of
// Python's any more. What comes from now on goes past it, and Python is asked for what came before.
const hear = async (model) => {
  const found = Promise.resolve().then(() => model.widget_manager.get_model(model.get("_id")));
  const own = await found.catch(() => undefined);  // not every front-end has a manager
  const handle = own && Object.getPrototypeOf(Object.getPrototypeOf(own))._handle_comm_msg;
  if (handle) own.comm?.on_msg(message => handle.call(own, message));
  model.send({ event: "ready", n: model.get("_state").n });
};

export default () => {
  const views = new Set();
  let content, edits;

  const take = (model) => {
    const state = model.get("_state");
    content = unpacked(state.content, state.buffers);
    edits = new Map(state.edits.map(([path, value]) => [path.join(), [path, value]]));
  };

  const edit = (changes, except) => {
    for (const [path, ...value] of changes) {
      if (value.length) edits.set(path.join(), [path, ...value]);
      else edits.delete(path.join());
    }
    for (const view of views) if (view !== except) view.draw();
  };

  const follow = (message, buffers) => {
    for (const [path, ...value] of unpacked(message.changes, buffers)) put(content, path, value);
    edit(message.edits);
    if (message.changes.length) for (const view of views) view.keep();
  };

  const makeView = (model, place) => {
    let plotly, width, asked, again, held, quiet, stale, kept = "";

    const drawNow = async () => {
      asked = undefined;
      if (held) return;
      plotly ??= await library(model);
      width = place.clientWidth;
      if (!width) {  // hidden: the observer says when it is not, unless it was for less than a frame
        if (!again) again = setTimeout(view.draw, 500);
        return;
      }
      again = undefined;
      const layout = structuredClone(content.layout), shown = { data: content.data.map(writable), layout };
      for (const [path, ...value] of edits.values()) put(shown, path, structuredClone(value));
      if (isDark()) recolour(shown, model.get("_dark"));
      keepRanges(place.layout, layout);
      layout.width ??= width;
      layout.height ??= HEIGHT;
      const first = !place.on;
      await plotly.react(place, shown.data, layout, model.get("_config"));
      place.style.minHeight = "";
      if (!first) return;
      listen();
      view.keep();
    };

    // To draw while the mouse draws, or plotly.js still looks what is inside (50 ms), would end a lasso.
    const gone = new AbortController();
    whenTheme(() => view.draw(), gone.signal);
    const release = () => setTimeout(() => { held = false; view.draw(); }, 100);
    place.addEventListener("pointerdown", () => { held = true; });
    for (const end of ["pointerup", "pointercancel"])
      window.addEventListener(end, () => { if (held) release(); }, { signal: gone.signal });

    // The picture of a figure that has been left alone for a while. One with WebGL would take contexts from the others
    // on the page, of which there are 16.
    const keepNow = async () => {
      if (!model.get("_keeps") || !place.on || !width || !place.clientWidth) return;  // not drawn yet, or hidden
      stale = false;
      const webgl = content.data.some(trace => trace.type?.endsWith("gl"));
      const size = { format: "webp", width, height: place.layout.height };
      let image = webgl ? "" : await plotly.toImage(place, size);
      if (image.length > LARGEST) image = "";
      if (image === kept) return;
      kept = image;
      model.send({ event: "kept", image });
    };

    const view = {
      draw: () => { asked ??= requestAnimationFrame(drawNow); },
      keep: () => { clearTimeout(quiet); stale = true; quiet = setTimeout(keepNow, 1500); },
    };

    const tell = (changes) => {
      edit(changes, view);
      view.keep();
      model.send({ event: "edit", edits: changes });
    };

    const numbers = event => event.points.map(point => [point.curveNumber, point.pointNumber]);

    const hovered = (points) => {
      model.set("_hovered", points);  // a trait: while the kernel is busy, only the last counts
      model.save_changes();
    };

    const listen = () => {
      place.on("plotly_hover", event => hovered(numbers(event)));
      place.on("plotly_unhover", () => hovered([]));
      place.on("plotly_click", event => model.send({ event: "click", points: numbers(event) }));
      place.on("plotly_deselect", () => model.send({ event: "deselect", points: [] }));
      place.on("plotly_relayout", event => tell(editsOf(place, event)));
      place.on("plotly_restyle", ([change, traces]) => {
        if ("visible" in change) tell(traces.map(trace => [["data", trace, "visible"], place.data[trace].visible]));
      });
    };

    const observer = new ResizeObserver(() => {
      keepKeys(place);
      if (place.clientWidth !== width) view.draw();
      if (stale) view.keep();  // it may have been hidden when its time came
    });
    observer.observe(place);
    view.remove = () => {
      gone.abort();
      observer.disconnect();
      clearTimeout(quiet);
      clearTimeout(again);
      views.delete(view);
      plotly?.purge(place);
    };
    views.add(view);
    return view;
  };

  return {
    initialize({ model }) {
      take(model);
      model.on("msg:custom", follow);
      model.on("change:_state", () => { take(model); edit([]); });
      hear(model);
    },
    render({ model, el }) {
      el.style.overflow = "hidden";  // so that what is drawn does not keep the place from becoming narrower
      const place = el.appendChild(document.createElement("div"));
      place.style.minHeight = `${content.layout.height ?? HEIGHT}px`;
      return makeView(model, place).remove;
    },
  };
};
