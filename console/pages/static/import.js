// Import: takes a journey out of a file and opens it in the builder, as a draft.
(() => {
  document.getElementById("file").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    if (!file) return;
    const answer = await window.waypost.call("POST", "/builder/import", { name: file.name, text: await file.text() });
    event.target.value = "";
    const place = document.getElementById("error");
    if (!answer.ok) {
      place.textContent = `${file.name}: ${answer.message ?? "this is no journey"}`;
      place.hidden = false;
      return;
    }
    const { draft, known } = answer.said, id = known ? draft.id : "";
    let base = null;
    if (known) base = (await window.waypost.call("GET", `/api/journeys/${id}`)).said?.version ?? null;
    localStorage.setItem(`waypost-draft:${id}`, JSON.stringify({ draft, base, selected: 0, at: Date.now() }));
    location.assign(known ? `/builder?id=${id}` : "/builder");
  });
})();
