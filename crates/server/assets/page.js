// Keeps the page as the server would render it now. The server watches and renders; this script
// hears that something has changed, fetches the page, and puts its content in place.
"use strict";

(() => {
  const PAUSE = 250; // Shortest time between two fetches, in milliseconds.
  const RETRY = 2000; // How long after a lost connection the watch is tried again.
  const live = document.getElementById("live");
  let source = null;
  let due = null;
  let fetching = false;
  let again = false;

  const main = () => document.getElementById("main");

  function show(on) {
    live.textContent = on ? "live" : "reconnecting";
    live.classList.toggle("on", on);
  }

  // What a reader has opened or closed stays so; pushes are told apart by their ids.
  function keepOpen(before, after) {
    for (const old of before.querySelectorAll("details[id]")) {
      const now = after.querySelector("#" + CSS.escape(old.id));
      if (now && old.dataset.touched) {
        now.open = old.open;
        now.dataset.touched = "1";
      }
    }
  }

  async function refresh() {
    due = null;
    if (fetching) {
      again = true;
      return true;
    }
    fetching = true;
    try {
      const response = await fetch("/", { cache: "no-store" });
      if (response.status === 401) {
        // The session is over: the page is now the form to sign in with.
        location.reload();
        return false;
      }
      if (!response.ok) return false;
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const next = page.getElementById("main");
      if (!next) return false;
      keepOpen(main(), next);
      main().replaceWith(document.adoptNode(next));
      ages();
      return true;
    } catch {
      return false;
    } finally {
      fetching = false;
      if (again) {
        again = false;
        soon();
      }
    }
  }

  function soon() {
    if (due === null) due = setTimeout(refresh, PAUSE);
  }

  // Watches from the revision that the page shows, so that no snapshot has to be sent.
  function watch() {
    const { epoch, revision } = main().dataset;
    const from = new URLSearchParams({ epoch, revision });
    source = new EventSource("/v1/watch?" + from);
    source.onopen = () => show(true);
    source.addEventListener("change", soon);
    source.addEventListener("snapshot", soon);
    source.onerror = () => {
      // A server that is gone, or one that no longer knows this revision: begin with the page.
      show(false);
      source.close();
      setTimeout(async () => {
        await refresh();
        watch();
      }, RETRY);
    };
  }

  function age(milliseconds) {
    const ahead = milliseconds < 0;
    const seconds = Math.round(Math.abs(milliseconds) / 1000);
    const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const [size, unit] = units.find(([size]) => seconds >= size) || [1, "s"];
    const text = Math.floor(seconds / size) + " " + unit;
    return ahead ? "in " + text : text + " ago";
  }

  function ages() {
    for (const time of document.querySelectorAll("time[data-ms]")) {
      if (!time.title) time.title = time.textContent;
      time.textContent = age(Date.now() - Number(time.dataset.ms));
    }
  }

  document.addEventListener("click", (event) => {
    const details = event.target.closest("summary")?.parentElement;
    if (details) details.dataset.touched = "1";
  });

  ages();
  setInterval(ages, 1000);
  watch();
})();
