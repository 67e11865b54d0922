// What the page asks of the server; all addresses are relative to the one with the token.

// The server has answered, and refuses.
export class Refused extends Error {
  constructor(said, status) {
    super(said.problem || said.confirm || `the server answers with ${status}`);
    this.confirm = said.confirm || "";
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  if (response.ok) return response;
  const isJson = (response.headers.get("Content-Type") || "").includes("json");
  throw new Refused(isJson ? await response.json() : { problem: await response.text() }, response.status);
}

async function json(path, said) {
  const options = said ? { method: "POST", body: JSON.stringify(said) } : {};
  return (await ask(path, options)).json();
}

function address(...parts) {
  return `api/${parts.map(encodeURIComponent).join("/")}`;
}

export const api = {
  overview: () => json("api/overview"),
  next: (request, annotator, holder) => json(address(request, "next"), { annotator, holder }),
  open: (request, caseId, annotator, holder, take_over) =>
    json(address(request, caseId, "open"), { annotator, holder, take_over }),
  imageUrl: (request, caseId, channel) => `${address(request, caseId, "image")}?channel=${channel}`,
  uncertaintyUrl: (request, caseId) => address(request, caseId, "uncertainty"),
  drawing: async (request, caseId) => new Uint8Array(await (await ask(address(request, caseId, "drawing"))).arrayBuffer()),
  draft: (request, caseId, holder, seconds, body) =>
    ask(`${address(request, caseId, "draft")}?${new URLSearchParams({ holder, seconds })}`, { method: "PUT", body }),
  submit: (request, caseId, holder, seconds, based_on, confirmed, body) =>
    ask(`${address(request, caseId, "submit")}?${new URLSearchParams({ holder, seconds, based_on, confirmed })}`, { method: "POST", body }),
  about: (round, unit) => json(address(round, unit, "about")),
  shown: async (round, unit, kind) => new Uint8Array(await (await ask(address(round, unit, kind))).arrayBuffer()),
  review: (round, unit, said) => json(address(round, unit, "review"), said),
  release: (request, holder) => navigator.sendBeacon(address(request, "release"), JSON.stringify({ holder })),
};
