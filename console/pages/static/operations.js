// Operations: recalculates all, sends rejected records again, as they were or mended.
(() => {
  const byId = (id) => document.getElementById(id), { call, say } = window.waypost;
  const wrong = (text) => { byId("error").textContent = text || ""; byId("error").hidden = !text; };
  let asked = false;
  byId("all").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button"), rate = byId("throttle").value.replace(/[,\s]/g, "");
    if (!asked) {
      asked = true;
      button.textContent = "Results stay live. Recalculate all?";
      setTimeout(() => { asked = false; button.textContent = "Recalculate all…"; }, 5000);
      return;
    }
    const answer = await call("POST", "/api/recalculations", { journeys: "all", events_per_second: rate ? Number(rate) : null });
    wrong(answer.ok ? "" : answer.message);
    if (answer.ok) say("Recalculation planned");
  });

  const chosen = () => [...document.querySelectorAll("[name=record]:checked")].map((box) => box.value);
  const count = () => { byId("resend").disabled = !chosen().length; };
  byId("every")?.addEventListener("change", (event) => { for (const box of document.querySelectorAll("[name=record]")) box.checked = event.target.checked; count(); });
  byId("rejected")?.addEventListener("change", count);
  byId("resend").addEventListener("click", async () => {
    const answer = await call("POST", "/api/rejected/resend", { records: chosen().map((id) => ({ id })) });
    if (!answer.ok) return wrong(answer.message);
    const { sent, refused } = answer.said;
    wrong(refused.map((one) => one.error.message).join(" "));
    say(`${sent.length} sent again`);
    told(sent.map((one) => one.id));
  });
  const told = (ids) => {
    for (const id of ids) {
      const box = document.querySelector(`[name=record][value="${CSS.escape(id)}"]`);
      if (!box) continue;
      box.checked = false;
      const cell = box.closest("tr").children[1];
      if (!cell.querySelector(".tag")) { const tag = document.createElement("span"); tag.className = "tag good"; tag.textContent = "Sent again"; cell.append(" ", tag); }
    }
    count();
  };

  let mending = null, original = "";
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-mend]");
    if (!button) return;
    mending = button.dataset.mend;
    original = document.querySelector(`[data-record="${CSS.escape(mending)}"]`).content.textContent;
    byId("mend-id").textContent = `record ${mending}`;
    byId("mend-error").textContent = button.textContent;
    byId("mend-none").hidden = true; byId("mend-form").hidden = false; byId("mend-said").hidden = true;
    byId("bytes").value = original;
    byId("bytes").focus();
    mark(button.textContent);
  });
  const mark = (reason) => { // selects the field that the reason names, where the text has it
    const name = /^\s*([a-z_]+)\b/.exec(reason)?.[1], at = name ? original.indexOf(`"${name}"`) : -1;
    if (at >= 0) {
      const end = /"[^"]*"\s*:\s*("(?:[^"\\]|\\.)*"|[^,}\]]*)/.exec(original.slice(at));
      byId("bytes").setSelectionRange(at, at + (end ? end[0].length : name.length + 2));
    }
  };
  byId("mend-undo").addEventListener("click", () => { byId("bytes").value = original; byId("bytes").focus(); });
  byId("mend").addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await call("POST", "/api/rejected/resend", { records: [{ id: mending, value: byId("bytes").value }] });
    const refused = answer.ok ? answer.said.refused[0] : null;
    if (!answer.ok || refused) {
      byId("mend-error").textContent = refused ? refused.error.message : answer.message;
      byId("bytes").focus();
      return;
    }
    byId("mend-form").hidden = true;
    byId("mend-said").textContent = `Record ${mending} is on its topic again, mended. It is in the numbers within a second.`;
    byId("mend-said").hidden = false;
    told([mending]);
  });
})();
