(* The framing of 1-framing.md as Lwt_io writes it, and a testee for run.py.
   ocamlfind ocamlopt -thread -package lwt.unix -linkpkg testee.ml -o testee *)

open Lwt.Infix

(* One of the four ends, as an exit status. *)
exception End of int

let edge, inside, negative, too_large = (0, 3, 4, 5)

(* Lwt_io answers End_of_file at an edge and inside an item alike. What tells them apart is that
   bytes of the item are left in its buffer. *)
let read_int ic =
  Lwt.catch
    (fun () -> Lwt_io.read_int ic)
    (function
      | End_of_file -> raise (End (if Lwt_io.buffered ic = 0 then edge else inside))
      | error -> Lwt.fail error)

(* Piece by piece, so that memory grows with what arrives (F-17). *)
let read_payload ic size =
  let payload = Buffer.create (min size 65536) in
  let rec go () =
    let missing = size - Buffer.length payload in
    if missing = 0 then Lwt.return (Buffer.contents payload)
    else
      Lwt_io.read ~count:(min missing 65536) ic >>= function
      | "" -> Lwt.fail (End inside)
      | piece -> Buffer.add_string payload piece; go ()
  in
  go ()

let read_message ic limit =
  read_int ic >>= fun size ->
  if size < 0 then Lwt.fail (End negative)
  else if size > limit then Lwt.fail (End too_large)
  else read_payload ic size

let write_message oc payload =
  Lwt_io.write_int oc (String.length payload) >>= fun () -> Lwt_io.write oc payload

let echo ic oc limit = function
  | 'm' -> read_message ic limit >>= write_message oc
  | _ ->
      read_int ic >>= fun number ->
      Lwt_io.write_int oc number >>= fun () -> write_message oc (string_of_int number)

let rec main limit reads turn =
  echo Lwt_io.stdin Lwt_io.stdout limit reads.[turn mod String.length reads] >>= fun () ->
  Lwt_io.flush Lwt_io.stdout >>= fun () -> main limit reads (turn + 1)

let () =
  let limit = int_of_string Sys.argv.(1) and reads = Sys.argv.(2) in
  match Lwt_main.run (main limit reads 0) with
  | exception End status -> exit status
  | () -> exit edge
