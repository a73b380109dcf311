(() => {
  "use strict";
  const content = (id) => JSON.parse(document.getElementById(id).textContent);
  const root = document.documentElement;

  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
    if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  });

  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
  });

  const views = {};
  const options = { actions: false, renderer: "svg", tooltip: { disableDefaultStyle: true } };
  const draw = ([id, spec]) =>
    vegaEmbed(document.getElementById(id), spec, options).then((done) => { views[id] = done.view; });

  const digits = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
  const names = new Set(["vm", "vm_id"]); // columns of numbers that are names
  const cell = (name, value) => {
    const made = document.createElement("td");
    if (typeof value === "string") made.className = "text";
    const plain = typeof value !== "number" || names.has(name);
    made.textContent = value === null ? "-" : plain ? value : digits.format(value);
    return made;
  };
  const fill = (table, rows, none) => {
    const body = table.tBodies[0];
    body.replaceChildren(...rows.map((row) => {
      const made = document.createElement("tr");
      made.append(...table.dataset.columns.split(",").map((name) => cell(name, row[name])));
      return made;
    }));
    table.hidden = rows.length === 0;
    none.hidden = rows.length > 0;
  };

  const rowsOf = (columns) => {
    const keys = Object.keys(columns);
    return columns[keys[0]].map((_, i) => Object.fromEntries(keys.map((key) => [key, columns[key][i]])));
  };
  const hosts = content("hosts");
  const choose = (run, host) => {
    const place = document.getElementById(`chosen-${run}`);
    const found = hosts[run][host];
    place.querySelector("h3").textContent = `Host ${host}`;
    for (const [id, view] of Object.entries(views)) {
      if (id.startsWith(`host-${run}-`)) view.data("rows", rowsOf(found.curves)).runAsync();
    }
    for (const name of ["vms", "events"]) {
      fill(place.querySelector(`table.${name}`), rowsOf(found[name]), place.querySelector(`.no-${name}`));
    }
    document.querySelectorAll(`#worst-${run} tr[data-host]`).forEach((row) => {
      row.setAttribute("aria-selected", String(row.dataset.host === String(host)));
    });
    place.dataset.host = host;
  };

  Promise.all(Object.entries(content("charts")).map(draw)).then(() => {
    document.querySelectorAll("table.worst").forEach((table) => {
      const run = table.dataset.run;
      const rows = [...table.querySelectorAll("tr[data-host]")];
      rows.forEach((row) => {
        const go = () => choose(run, row.dataset.host);
        row.addEventListener("click", go);
        row.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
      });
      if (rows.length) choose(run, rows[0].dataset.host);
    });
    root.dataset.ready = "yes";
  });
})();
