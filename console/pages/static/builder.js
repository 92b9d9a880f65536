// Builder: keeps the draft, as JSON, in this browser; changes it where the page says so; has the server show and judge it; saves it through the API.
// Addresses in the draft are those of the API's errors: stages[0].condition.any[1].page
(() => {
  const byId = (id) => document.getElementById(id), { say, call } = window.waypost;
  const given = JSON.parse(byId("data").textContent), KEY = `waypost-draft:${given.id}`;
  const editor = byId("editor"), SAVED = JSON.stringify(given.draft);
  let draft = structuredClone(given.draft), base = given.version, selected = 0, before = null, timer = null, asked = 0, named = Boolean(given.draft.id);

  // ---------------------------------------------------------------- the draft, and where it is kept
  const read = () => { try { return JSON.parse(localStorage.getItem(KEY)); } catch { return null; } };
  const keep = () => {
    try {
      if (JSON.stringify(draft) === SAVED && !given.changed) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, JSON.stringify({ draft, base, selected, at: Date.now() }));
    } catch { /* no room: the draft lives as long as this page */ }
  };
  const kept = given.changed ? null : read();
  if (kept) ({ draft, base, selected } = kept);
  const steps = (at) => at.split(/[.[\]]+/).filter(Boolean).map((step) => (/^\d+$/.test(step) ? Number(step) : step));
  const get = (at) => steps(at).reduce((value, step) => value?.[step], draft);
  const set = (at, value) => {
    const path = steps(at), last = path.pop();
    const parent = path.reduce((here, step) => (here[step] ??= {}), draft);
    if (value === undefined) delete parent[last]; else parent[last] = value;
  };
  const list = (at) => { // makes the list there, so that a member can be added to what is still empty
    if (!Array.isArray(get(at))) set(at, []);
    return get(at);
  };
  const split = (at) => { const cut = at.lastIndexOf("["); return [at.slice(0, cut), Number(at.slice(cut + 1, -1))]; };
  const clean = (value) => { // without the tests whose text is empty: a parameter that is not given
    if (Array.isArray(value)) return value.map(clean);
    if (!value || typeof value !== "object") return value;
    const kept = Object.entries(value).filter(([, one]) => !("rule" in value) || !empty(one));
    return Object.fromEntries(kept.map(([name, one]) => [name, clean(one)]));
  };
  const empty = (one) => one && typeof one === "object" && !Array.isArray(one) && Object.values(one).length === 1 && Object.values(one)[0].length === 0;
  const anchor = (at) => "at-" + at.replace(/[^a-z0-9_]+/g, "-").replace(/^-|-$/g, "");

  // ---------------------------------------------------------------- showing it
  const show = async (focus) => {
    clearTimeout(timer);
    keep();
    const turn = ++asked;
    const answer = await fetch("/builder/show", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ draft, id: given.id, base, selected }),
    }).catch(() => null);
    if (turn !== asked) return; // a newer one is on its way
    if (!answer?.ok) { away(true); timer = setTimeout(() => show(focus), 1500); return; }
    away(false);
    await htmx.swap({ text: await answer.text(), target: editor, sourceElement: editor, swap: "innerMorph" });
    if (turn === asked) editor.classList.remove("stale");
    for (const field of editor.querySelectorAll("input[data-set],textarea[data-set],select[data-set]")) { // what is typed in wins over what is shown
      if (field !== document.activeElement) fill(field);
    }
    byId("scheduled").checked = draft.scheduled_recalculation === true;
    arrange();
    if (focus) byId(focus)?.focus();
  };
  const redraw = (focus) => { // things have other places now: until the page shows them there, nothing is done to what it still shows
    editor.classList.add("stale");
    return show(focus);
  };
  const stale = (element) => editor.classList.contains("stale") && editor.contains(element);
  const away = (yes) => {
    const lost = byId("lost");
    lost.textContent = yes ? "Connection lost. Your draft is kept in this browser; this page goes on by itself." : "";
    lost.hidden = !yes;
  };
  const fill = (field) => {
    const as = field.dataset.as, value = get(field.dataset.set);
    if (as === "flag") field.checked = value === true;
    else if (as === "text" || as === "whole" || as === "number") field.value = value ?? "";
    else if (as === "test") {
      const operand = value && typeof value === "object" ? Object.values(value)[0] : value;
      field.value = Array.isArray(operand) ? operand.join("\n") : operand ?? "";
    }
  };
  const later = () => { keep(); clearTimeout(timer); timer = setTimeout(show, 250); };

  // ---------------------------------------------------------------- typing
  const operator = (at) => document.querySelector(`select[data-set="${CSS.escape(at)}"]`)?.value;
  const take = (field) => {
    const at = field.dataset.set, text = field.value;
    switch (field.dataset.as) {
      case "flag": set(at, field.checked); break;
      case "text": set(at, text); break;
      case "whole": case "number": set(at, text.trim() === "" ? undefined : Number.isFinite(Number(text)) ? Number(text) : text); break;
      case "choice": set(at, text === "" ? undefined : text); break;
      case "op": {
        const now = get(at), operand = now && typeof now === "object" ? Object.values(now)[0] : now;
        const value = text === "one_of" ? (Array.isArray(operand) ? operand : operand ? [operand] : []) : Array.isArray(operand) ? operand.join(" ") : operand;
        set(at, { [text]: value ?? (text === "one_of" ? [] : "") });
        show();
        break;
      }
      case "test": {
        const op = operator(at);
        const operand = op === "one_of" ? text.split("\n").map((line) => line.trim()).filter(Boolean) : text;
        set(at, { [op]: operand });
        break;
      }
      default: try { set(at, JSON.parse(text)); } catch { set(at, text || undefined); }
    }
    if (at === "name") {
      byId("title").textContent = text || "New journey";
      if (!given.id && !named) set("id", text.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 64));
    }
    if (at === "id") named = text !== "";
  };
  document.addEventListener("input", (event) => { if (event.target.dataset.set) { take(event.target); later(); } });
  let offered = 0;
  const offer = async (field) => {
    const turn = ++offered, query = new URLSearchParams({ field: field.dataset.offers, q: field.value.slice(0, 200), limit: "20" });
    const answer = await fetch(`/api/values?${query}`).catch(() => null);
    if (!answer?.ok || turn !== offered) return;
    byId("offers").replaceChildren(...(await answer.json()).values.map((one) => new Option(`${one.activities} activities`, one.value)));
  };
  document.addEventListener("focusin", (event) => { if (event.target.dataset?.offers) offer(event.target); });
  document.addEventListener("input", (event) => { if (event.target.dataset.offers) offer(event.target); });

  // ---------------------------------------------------------------- moving things
  const stageLimit = () => draft.stages.length >= 10;
  const move = (from, to) => { // from an address of a member to [list, place]
    if (get(from) === undefined) return null; // a drag may outlast what it took hold of
    const [source, at] = split(from), [target, place] = to, taken = list(source).splice(at, 1)[0];
    let there = target;
    if (target.startsWith(from)) { list(source).splice(at, 0, taken); return null; } // not into itself
    const cut = source.length; // what stands behind it in the same list has a new address
    const behind = target.startsWith(`${source}[`) ? Number(target.slice(cut + 1, target.indexOf("]", cut))) : -1;
    if (behind > at) there = `${source}[${behind - 1}]${target.slice(target.indexOf("]", cut) + 1)}`;
    list(there).splice(place, 0, taken);
    return `${there}[${place}]`;
  };
  const sorted = new WeakSet();
  const arrange = () => {
    const cards = byId("stage-cards");
    if (cards && !sorted.has(cards)) { // morphing keeps elements, and takes attributes that the server does not know
      sorted.add(cards);
      Sortable.create(cards, { handle: ".grip", forceFallback: true, animation: 120, onEnd: ({ oldIndex, newIndex }) => {
        if (oldIndex !== newIndex) { move(`stages[${oldIndex}]`, ["stages", newIndex]); selected = newIndex; }
        redraw();
      } });
    }
    for (const members of editor.querySelectorAll(".members")) {
      if (sorted.has(members)) continue;
      sorted.add(members);
      Sortable.create(members, { group: "members", handle: ".grip", forceFallback: true, animation: 120, fallbackOnBody: true, onEnd: ({ item, from, to, oldIndex, newIndex }) => {
        const address = item.dataset.member, target = to.dataset.listAt;
        from.insertBefore(item, from.children[oldIndex] ?? null); // the page is drawn from the draft
        if (from !== to || oldIndex !== newIndex) move(address, [target, newIndex]);
        redraw();
      } });
    }
  };
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") { event.preventDefault(); save(); return; }
    const grip = event.target.closest?.("[data-grip]");
    if (!grip || !event.altKey || !["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    if (stale(grip)) return;
    const from = grip.dataset.grip, [source, at] = split(from), by = event.key === "ArrowUp" ? -1 : 1;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      if (at + by < 0 || at + by >= list(source).length) { say("It cannot go further"); return; }
      move(from, [source, at + by]);
      if (source === "stages") {
        selected = at + by;
        say(`Stage ${at + 1} moved to ${at + by + 1} of ${draft.stages.length}`);
        redraw(`grip-${at + by}`);
      } else {
        say(`Moved to ${at + by + 1} of ${list(source).length}`);
        redraw(`${anchor(`${source}[${at + by}]`)}-grip`);
      }
    } else if (source !== "stages") { // out of its group, or into the group before it
      let to = null;
      if (event.key === "ArrowLeft") {
        const group = source.slice(0, source.lastIndexOf("."));
        if (group.endsWith("]")) { const [outer, place] = split(group); to = [outer, place + 1]; }
      } else {
        const neighbour = get(`${source}[${at - 1}]`), op = neighbour && ["any", "all"].find((one) => one in neighbour);
        if (op) to = [`${source}[${at - 1}].${op}`, neighbour[op].length];
      }
      const place = to && move(from, to);
      say(place ? "Moved to another group" : "There is no group there");
      if (place) redraw(`${anchor(place)}-grip`);
    }
  });

  // ---------------------------------------------------------------- the buttons of the page
  const doing = {
    "add-stage": () => {
      if (stageLimit()) return;
      draft.stages.push({ name: "", condition: { any: [] } });
      selected = draft.stages.length - 1;
      redraw(`at-stages-${selected}-name`);
    },
    select: ({ stage }) => { selected = Number(stage); redraw(`stage-${stage}`); },
    duplicate: ({ at }) => {
      if (stageLimit()) return;
      const [, place] = split(at), copy = structuredClone(get(at));
      copy.name = `${copy.name ?? ""} (copy)`;
      draft.stages.splice(place + 1, 0, copy);
      selected = place + 1;
      redraw(`at-stages-${selected}-name`);
    },
    remove: ({ at }) => {
      const [source, place] = split(at);
      list(source).splice(place, 1);
      if (source === "stages") { selected = Math.max(0, Math.min(selected, draft.stages.length - 1)); redraw("add-stage"); }
      else redraw(`${anchor(source.slice(0, source.lastIndexOf(".")))}-rule`);
    },
    op: ({ at, op }) => {
      const now = get(at) ?? {}, members = now.any ?? now.all ?? [];
      set(at, { [op]: members });
      redraw(`${anchor(at)}-${op}`);
    },
    "add-group": ({ at }) => { list(at).push({ any: [] }); redraw(`${anchor(`${at}[${list(at).length - 1}]`)}-rule`); },
    pick: ({ at }, button) => openPicker(at, button),
    goto: async ({ anchor: id, stage }) => {
      if (stage !== undefined) { selected = Number(stage); await redraw(); }
      const found = byId(id) ?? byId(`${id}-rule`);
      (found?.matches("input,select,textarea,button") ? found : found?.querySelector("input,select,textarea,button"))?.focus();
    },
    discard: () => {
      before = { draft, base, selected };
      draft = structuredClone(given.draft); base = given.version; selected = 0; given.changed = false;
      byId("undo").hidden = false;
      setTimeout(() => { byId("undo").hidden = true; before = null; }, 10000);
      redraw("save");
    },
    undo: () => { if (before) ({ draft, base, selected } = before); byId("undo").hidden = true; redraw("save"); },
    review: () => { byId("compared-body").replaceChildren(byId("review-body").content.cloneNode(true)); byId("compared").showModal(); },
    compare: async ({ version }) => {
      const answer = await fetch(`/builder/compare?${new URLSearchParams({ id: given.id, version })}`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ draft, id: given.id }),
      }).catch(() => null);
      if (!answer?.ok) return problem("The versions cannot be compared at the moment.");
      await htmx.swap({ text: await answer.text(), target: byId("compared-body"), sourceElement: byId("compared-body"), swap: "innerHTML" });
      byId("compared").showModal();
    },
    "bring-back": async ({ version }) => {
      const answer = await call("GET", `/api/journeys/${given.id}/versions/${version}`);
      if (!answer.ok) return problem(answer.message);
      const { id, name, scheduled_recalculation, stages } = answer.said;
      draft = { id, name, scheduled_recalculation, stages };
      selected = 0;
      say(`Version ${version} is the draft now`);
      redraw("save");
    },
    "on-top": ({ version }) => { base = Number(version); save(); },
    "take-theirs": () => { localStorage.removeItem(KEY); location.reload(); },
    save: () => save(),
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button || button.disabled || stale(button)) return;
    const { do: what, at } = button.dataset;
    doing[what](button.dataset, button);
  });
  const problem = (text) => { const place = byId("error"); place.textContent = text; place.hidden = !text; };
  const save = async () => {
    problem("");
    await show();
    if (byId("summary")) { byId("summary").focus(); say("The draft has mistakes"); return; }
    if (byId("save").disabled) return;
    const id = given.id || draft.id;
    if (!given.id && (await call("GET", `/api/journeys/${id}`)).ok) { show("at-id"); return; }
    const answer = await call("PUT", `/api/journeys/${id}`, clean(draft), given.id ? { "If-Match": `"${base}"` } : { "If-None-Match": "*" });
    if (answer.ok) { localStorage.removeItem(KEY); location.assign(`/journeys/${id}`); return; }
    if (answer.status === 412) { await show(); if (!given.id) return; byId("overtaken")?.scrollIntoView(); say("Somebody saved another version meanwhile"); return; }
    problem(answer.message);
  };

  // ---------------------------------------------------------------- choosing a rule
  const picker = byId("picker"), search = byId("picker-search"), options = byId("picker-list");
  let target = null, from = null, category = "", active = 0, shown = [];
  const openPicker = (at, button) => { target = at; from = button; category = ""; search.value = ""; active = 0; picker.showModal(); search.focus(); match(); };
  const match = () => {
    const words = search.value.toLowerCase();
    const found = given.rules.filter((one) => `${one.name} ${one.title} ${one.sentence}`.toLowerCase().includes(words));
    for (const button of picker.querySelectorAll("[data-category]")) {
      button.querySelector("span").textContent = found.filter((one) => !button.dataset.category || one.category === button.dataset.category).length;
      button.setAttribute("aria-pressed", String(button.dataset.category === category));
    }
    shown = found.filter((one) => !category || one.category === category);
    active = Math.max(0, Math.min(active, shown.length - 1));
    options.replaceChildren(...shown.map((one, k) => {
      const option = document.createElement("div");
      option.id = `option-${k}`; option.role = "option"; option.setAttribute("aria-selected", String(k === active)); option.dataset.k = k;
      const title = document.createElement("b"), text = document.createElement("span"), tag = document.createElement("span");
      title.textContent = `Contact has ${one.title.toLowerCase()}`;
      text.textContent = one.sentence.replace(/[[\]]/g, "").replace(/\{(\w+)\}/g, "…"); text.className = "s m";
      tag.textContent = one.category; tag.className = "tag";
      option.append(title, tag, text);
      return option;
    }));
    if (!shown.length) options.textContent = "No rule has that in its name or sentence.";
    search.setAttribute("aria-activedescendant", shown.length ? `option-${active}` : "");
  };
  const choose = (k) => {
    const one = shown[k];
    if (!one) return;
    picker.close();
    const members = list(target);
    members.push({ rule: one.name });
    const at = `${target}[${members.length - 1}]`, first = Object.keys(one.parameters.properties)[0];
    show(first ? anchor(`${at}.${first}`) : `${anchor(at)}-grip`);
  };
  search.addEventListener("input", () => { active = 0; match(); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      active = Math.max(0, Math.min(shown.length - 1, active + (event.key === "ArrowDown" ? 1 : -1)));
      match();
      byId(`option-${active}`)?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter") { event.preventDefault(); choose(active); }
  });
  options.addEventListener("click", (event) => { const option = event.target.closest("[data-k]"); if (option) choose(Number(option.dataset.k)); });
  picker.addEventListener("click", (event) => {
    const button = event.target.closest("[data-category]");
    if (button) { category = button.dataset.category; active = 0; match(); search.focus(); }
  });
  picker.addEventListener("close", () => { if (from?.isConnected) from.focus(); });

  // ---------------------------------------------------------------- others
  setInterval(async () => { // the second of two who edit is told
    if (!given.id || document.hidden || byId("overtaken")) return;
    const answer = await call("GET", `/api/journeys/${given.id}`);
    if (answer.ok && answer.said.version !== base) show();
  }, 3000);
  show().then(() => { if (kept) say("Your draft was kept in this browser"); });
})();
