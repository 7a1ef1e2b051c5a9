(* The dialogue of the protocol's first user. The parent says "0 Ready" once;
   then each query is a bare id and a message, each answer a bare id, the
   message "OK" or "ERR", and the message with the result or the error. *)

open Lwt.Syntax

let greeting = "0 Ready"
let write output text = Process_worker.write_message output (Bytes.of_string text)

let expect_text what text input =
  let* answer = Process_worker.read_message input in
  Lwt.return (Peer.expect what (answer = `Message (Bytes.of_string text)))

let reversed text =
  let last = String.length text - 1 in
  String.init (last + 1) (fun i -> text.[last - i])

(* What cannot be proved starts with "!". *)
let prove text =
  if String.length text > 0 && text.[0] = '!' then ("ERR", "cannot prove " ^ text)
  else ("OK", reversed text)

let answer output id text =
  let verdict, result = prove text in
  let* _ = Process_worker.write_int output id in
  let* _ = write output verdict in
  let* _ = write output result in
  Lwt.return_unit

let rec serve input output =
  let* id = Process_worker.read_int input in
  match id with
  | `End_of_file -> Lwt.return_unit
  | `Int id -> (
      let* query = Process_worker.read_message input in
      match query with
      | `End_of_file -> Peer.fail "expected a query after its id"
      | `Message text ->
          let* () = answer output id (Bytes.to_string text) in
          serve input output)

let child input output =
  let* () = expect_text "the greeting" greeting input in
  serve input output

let queries = 10_000

(* All that an int32 holds: both ends of it, and the numbers around zero. *)
let id index =
  if index = 0 then Int32.to_int Int32.min_int
  else if index = queries - 1 then Int32.to_int Int32.max_int
  else index - (queries / 2)

let query index =
  let mark = if index mod 10 = 3 then "!" else "" in
  Printf.sprintf "%squery %d %s" mark index (String.make (index mod 257) 'x')

let ask output index =
  let* _ = Process_worker.write_int output (id index) in
  let* answer = write output (query index) in
  Lwt.return (Peer.expect "a written query" (answer = `Write_ok))

let check input index =
  let verdict, result = prove (query index) in
  let what part = Printf.sprintf "the %s of query %d" part index in
  let* answered = Process_worker.read_int input in
  Peer.expect (what "id") (answered = `Int (id index));
  let* () = expect_text (what "verdict") verdict input in
  expect_text (what "result") result input

let indices = List.init queries Fun.id

let parent input output =
  let* _ = write output greeting in
  Lwt.join
    [ Lwt_list.iter_s (ask output) indices; Lwt_list.iter_s (check input) indices ]
