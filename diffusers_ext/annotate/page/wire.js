// Asking the server. What goes wrong is an Error with a text for the person, and the status, 0 for no answer.

const GONE = "The server was started again: open the address that it printed. What you entered here is kept.";
const AWAY = "The server does not answer. What you entered is kept here; try again.";

export async function call(path, body) {
  const request = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw Object.assign(new Error(AWAY), { status: 0 });
  }
  if (response.status === 403) throw Object.assign(new Error(GONE), { status: 403 });
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status, answer });
  return answer;
}
