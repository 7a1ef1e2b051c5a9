(* Every message comes back. *)

open Lwt.Syntax

let rec child input output =
  let* message = Process_worker.read_message input in
  match message with
  | `End_of_file -> Lwt.return_unit
  | `Message payload ->
      let* _ = Process_worker.write_message output payload in
      child input output

(* Around nothing, the size's own width, a pipe's capacity, and far above. *)
let sizes = [ 0; 1; 3; 4; 5; 65_531; 65_535; 65_536; 65_537; 1_048_576; 1_048_577 ]

let payload size = Bytes.init size (fun i -> Char.chr (((i * 31) + size) land 255))

let send output size =
  let* answer = Process_worker.write_message output (payload size) in
  Lwt.return (Peer.expect "a written message" (answer = `Write_ok))

let check input size =
  let* answer = Process_worker.read_message input in
  Lwt.return
    (Peer.expect
       (Printf.sprintf "the echo of %d bytes" size)
       (answer = `Message (payload size)))

let in_turn input output =
  Lwt_list.iter_s
    (fun size ->
      let* () = send output size in
      check input size)
    sizes

let in_flight input output =
  Lwt.join
    [ Lwt_list.iter_s (send output) sizes; Lwt_list.iter_s (check input) sizes ]

let parent input output =
  let* () = in_turn input output in
  in_flight input output
