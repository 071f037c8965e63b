// Data come as scripts that call lightsae.receive: browsers read no files from the disk in any other way.
"use strict";
(function (ls) {
  const values = new Map();
  const waiting = new Map();

  ls.receive = function (name, value) {
    values.set(name, value);
    if (waiting.has(name)) waiting.get(name).resolve(value);
  };
  ls.value = (name) => values.get(name);

  ls.load = function (name) {
    if (values.has(name)) return Promise.resolve(values.get(name));
    if (!waiting.has(name)) {
      const wait = {};
      wait.promise = new Promise((resolve, reject) => Object.assign(wait, { resolve, reject }));
      waiting.set(name, wait);
      ls.script(`assets/data/${name}.js`).catch((error) => {
        waiting.delete(name);
        wait.reject(error);
      });
    }
    return waiting.get(name).promise;
  };

  ls.script = (source) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = () => resolve();
      script.onerror = () => reject(new Error(`${source} cannot be loaded. Is the whole folder there?`));
      document.head.append(script);
    });

  // Features, or raw neurons: the columns of the list, with what is asked of them by place or by number.
  class Population {
    constructor(name, columns) {
      this.name = name;
      this.one = name === "features" ? "feature" : "neuron";
      const neurons = (ls.value("manifest").manifest.summary || {}).neurons || {};
      // Of both signs: D that fire where one is high, then D where it is low.
      this.width = name === "features" ? null : neurons.width;
      this.many = name === "features" ? "features" : neurons.kind || "raw neurons";
      this.title = name === "features" ? "feature" : this.many.startsWith("coord") ? "coordinate" : "raw neuron";
      this.columns = columns;
      this.n = columns.n;
      this.places = columns.feature && new Map(columns.feature.map((number, place) => [number, place]));
    }
    // What one is called: 12, or 12+ and 12− of a neuron.
    called(number) {
      return this.width ? `${number % this.width}${number < this.width ? "+" : "−"}` : String(number);
    }
    number(place) {
      return this.columns.feature ? this.columns.feature[place] : place;
    }
    place(number) {
      const place = this.places ? this.places.get(number) : number;
      return Number.isInteger(place) && place >= 0 && place < this.n ? place : undefined;
    }
    code(name, place) {
      const column = this.columns[name];
      return column.codes[place] < 0 ? null : column.names[column.codes[place]];
    }
    value(name, place) {
      const column = this.columns[name];
      return column ? column[place] : null;
    }
    label(place) {
      return this.columns.label[place];
    }
    tokens(place) {
      const { texts, of } = this.columns.tokens;
      return of[place].map((index) => texts[index]);
    }
    href(number) {
      return `#/${this.one}/${number}`;
    }
    // The whole of one: {row, tokens}.
    async load(number) {
      const place = this.place(number);
      if (place === undefined) return null;
      const size = ls.value("manifest").chunk;
      const chunk = await ls.load(`${this.name}/${Math.floor(place / size)}`);
      return { row: chunk.features[place % size], tokens: chunk.tokens };
    }
  }

  // The one of a neuron's two signs that a direction of some cosine with it points along.
  ls.signed = (neuron, cosine, width) => (cosine < 0 ? neuron + width : neuron);
  const populations = new Map();
  ls.population = async function (name) {
    if (!populations.has(name)) populations.set(name, new Population(name, await ls.load(name)));
    return populations.get(name);
  };
  ls.loaded = (name) => populations.get(name);
})(window.lightsae);
