"use strict";
(() => {
  const root = document.documentElement;
  const store = {
    get: () => { try { return localStorage.getItem("linverify-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("linverify-theme", value); } catch { /* a private window */ } },
  };
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const show = (name) => {
    if (name === "auto") { delete root.dataset.theme; } else { root.dataset.theme = name; }
    theme.textContent = `theme: ${name}`;
  };
  const known = store.get();
  show(themes.includes(known) ? known : "auto");
  theme.addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const order = dark ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    const next = order[(order.indexOf(root.dataset.theme ?? "auto") + 1) % order.length];
    show(next);
    store.set(next);
  });

  const say = (button, text) => {
    const before = button.dataset.label ?? button.textContent;
    button.dataset.label = before;
    button.textContent = text;
    button.classList.add("done");
    setTimeout(() => { button.textContent = before; button.classList.remove("done"); }, 1500);
  };
  const copyByHand = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  const textOf = (id) => document.getElementById(id).textContent;
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const text = button.dataset.copy ?? textOf(button.dataset.copyFrom);
      let done = false;
      try { await navigator.clipboard.writeText(text); done = true; } catch { done = copyByHand(text); }
      say(button, done ? "copied" : "select and copy");
    });
  }
  for (const button of document.querySelectorAll("button.save")) {
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([textOf(button.dataset.from)], { type: "text/x-python" }));
      link.download = button.dataset.name;
      link.click();
      URL.revokeObjectURL(link.href);
      say(button, "saved");
    });
  }

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const [x, y] = [a, b].map((t) => (t === "inf" ? Infinity : t === "" || t === "-" ? -Infinity : Number(t)));
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x === y ? 0 : x < y ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const body = table.tBodies[0];
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column)));
        body.append(...rows);
      });
    });
  }

  // A link to a folded failure opens it.
  const open = () => {
    const found = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (found instanceof HTMLDetailsElement) { found.open = true; found.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
})();
